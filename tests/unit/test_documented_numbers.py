"""The numbers that README and manual tell are those of the committed records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerroute.benchmark.case import against_the_best
from layerroute.lab.format import number, points, signed
from layerroute.lab.statistics import by_seed

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
SKIPPING, DETAILS, RECALL, SPEED, SUMMARY, SERVING, README = (
    "docs/results-skipping.md", "docs/results-recall.md", "docs/recall.md", "docs/speed.md", "docs/results.md",
    "docs/serving.md", "README.md",
)  # fmt: skip


def read(record: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / record).read_text(encoding="utf-8"))
    return found


def speed_up(record: str, row: int, arm: str) -> tuple[str, str]:
    found = read(f"benchmark/{record}.json")["rows"][row]["arms"][arm]["speedup"]
    median, low, high = (number(found[key], 2) for key in ("median", "q1", "q3"))
    return f"{median}×", f"{median}× ({low} to {high})"


def leads() -> Iterator[tuple[str, str, str]]:
    """By page and words of a row: what routing leads the best static arm of a text by."""
    for record, budgets in (
        ("transfer-17", (0.17,)),
        ("transfer", (0.35, 0.56)),
        ("transfer-joint", (0.21,)),
    ):
        for row in read(f"layer_skipping/transfer/{record}.json")["rows"]:
            if row["budget"] in budgets:
                arms = [arm["at_equal_cost"] for arm in row["arms"].values()]
                least = max(arms, key=lambda lead: float(lead["mean"]))
                mean, low, high = (signed(least[key]) for key in ("mean", "low", "high"))
                where = f"without {row['left_out']} | home" if row["home"] else f"{row['kind']} | away"
                yield SKIPPING, where, f"{mean} ({low} to {high})"
                if not row["home"] and record != "transfer-joint":
                    yield SUMMARY, f"| {row['kind']} | no", mean


def halves() -> Iterator[tuple[str, str, str]]:
    """What a router over both halves of a layer leads one over MLPs by, at its FLOPs."""
    for row in read("layer_skipping/transfer/joint-against-mlp.json")["rows"]:
        rival = row["arms"]["router35"]
        mean, low, high = (signed(rival["at_equal_cost"][end]) for end in ("mean", "low", "high"))
        where = f"| {row['kind']} | {number(100 * rival['saved'], 1)} %"
        yield SKIPPING, where, f"{mean} ({low} to {high})"


def published() -> Iterator[tuple[str, str, str]]:
    """What the default leads two published forms by, at their FLOPs."""
    for row in read("layer_skipping/transfer/mlp-against-published.json")["rows"]:
        for rival in ("router_non_linear", "router_history"):
            lead = row["arms"][rival]["at_equal_cost"]
            mean, low, high = (signed(lead[end]) for end in ("mean", "low", "high"))
            yield SKIPPING, f"| {row['kind']} | ", f"{mean} ({low} to {high})"


def programs() -> Iterator[tuple[str, str, str]]:
    """What deciding by token leads a program a prompt by, and what that leads greedy pruning by."""
    records = {"mlp-against-program": "router_program", "program-against-greedy": "static_greedy"}
    rows = [
        {
            row["kind"]: row["arms"][rival]["at_equal_cost"]
            for row in read(f"layer_skipping/transfer/{name}.json")["rows"]
        }
        for name, rival in records.items()
    ]
    for kind in rows[0]:
        told = [
            f"{signed(one[kind]['mean'])} ({signed(one[kind]['low'])} to {signed(one[kind]['high'])})"
            for one in rows
        ]
        yield SKIPPING, f"| {kind} | ", " | ".join(told)


def trained() -> Iterator[tuple[str, str, str]]:
    """What a trained router leads trained pruning by, on each text."""
    for record, page in (("trained", SUMMARY), ("trained-new-kinds", README)):
        away = []
        for row in read(f"layer_skipping/transfer/{record}.json")["rows"]:
            lead = row["arms"]["greedy-seed42"]["at_equal_cost"]
            mean, low, high = (signed(lead[key]) for key in ("mean", "low", "high"))
            where = (
                f"| {row['kind']} | {'home' if row['home'] else 'away'} | {number(100 * row['served'], 1)} %"
            )
            yield SKIPPING, where, f"{mean} ({low} to {high})"
            away += [] if row["home"] else [(lead["mean"], mean, f"{low} to {high}")]
        _, mean, ends = max(away)
        average = signed(sum(own for own, *_ in away) / len(away))
        yield from ((page, "trained on a million tokens", text) for text in (average, mean, ends))


def answers() -> Iterator[tuple[str, str, str]]:
    """What a router answers more than pruning at its FLOPs, in points."""
    for task, title in (("lambada", "LAMBADA"), ("arc_easy", "ARC-easy"), ("hellaswag", "HellaSwag")):
        found = read(f"layer_skipping/retention-{task}.json")["differences"][0]
        assert (found["metric"], found["outcome"]) == ("acc", "better")
        mean, low, high = (points(found[f"difference{end}"]) for end in ("", "_low", "_high"))
        yield README, "ARC-easy", f"({low} to {high})"
        yield README, "ARC-easy", mean
        unit = "points of last words" if task == "lambada" else "points"
        yield SKIPPING, f"**{title}, at equal FLOPs", f"{mean[1:]} {unit} ({low} to {high})"
    found = read("layer_skipping/retention-arc_easy-mlp.json")["differences"][0]
    assert (found["metric"], found["outcome"]) == ("acc", "cannot be told")
    mean, low, high = (points(found[f"difference{end}"]) for end in ("", "_low", "_high"))
    for page, where in (
        (README, "ARC-easy against"),
        (SKIPPING, "At equal FLOPs it cannot"),
        (SUMMARY, "ARC-easy cannot"),
    ):
        yield (
            page,
            where,
            f"{mean} points ({low} to {high})" if page != README else f"{mean} ({low} to {high})",
        )


def times() -> Iterator[tuple[str, str, str]]:
    """How many times as fast a model is."""
    cases = (
        ("prefill", "sparse", "prefill, 4 × 512 tokens", (0, 1, 2), 1),
        ("prefill", "sparse", "prefill, 1 × 2,048 tokens", (3, 4, 5), None),
        ("decode", "sparse", "decoding, batch 1", (0, 1, 2), 1),
        ("train-skipping", "sparse", "training step", (0,), None),
        ("attention", "routed", "routed attention, 4,096 tokens", (0, 1), None),
        ("hybrid", "sparse", "prefill of the hybrid model", (0,), None),
    )
    for record, arm, title, rows, told in cases:
        for row in rows:
            short, full = speed_up(record, row, arm)
            yield SPEED, title, full
            if told:
                yield SUMMARY, title, short
        if told is not None:
            yield README, title, speed_up(record, told, arm)[1]
    best = against_the_best(read("benchmark/engine.json"), "routed", ("plain", "plain compiled"))
    works = ("decoding, batch 1", "decoding, batch 8", "decoding, batch 32", "prefill of 2,048 tokens")
    for place, (_, ratio, _, speed) in enumerate(best):
        _, full = speed_up("engine", place, "routed")
        against = f"{number(ratio, 2)}×"
        yield SUMMARY, f"vLLM, {works[place % 4]} |", f"| {against} |"
        if place in (0, 1, 4, 5):
            yield README, "decoding in vLLM, batch 1 and 8", against
        arm = read("benchmark/engine.json")["rows"][place]["arms"]["routed"]
        limit = f"{100 * arm['share_of_limit']['median']:.0f} %"
        compiled = f"{number(speed['plain compiled'], 2)}×"
        yield SERVING, f"| {100 * arm['skipped']:.1f} % |", f"| {full} | {compiled} | {against} | {limit} |"


def recalled() -> Iterator[tuple[str, str, str]]:
    """What a learned router recalls more than its rivals, in points, over the seeds that both have."""

    def by_arm(arm: str) -> dict[int, float]:
        records = {seed: read(f"recall/{arm}-seed{seed}/record.json") for seed in range(1, 9)}
        return {seed: found["recall"]["by_length"][0]["accuracy"] for seed, found in records.items()}

    for rival, title in (
        ("random", "random at its rate"),
        ("periodic", "periodic at its rate"),
        ("static_3to1_flops", "static 3:1 at its FLOPs"),
    ):
        found = by_seed(by_arm("dynamic"), by_arm(rival))
        assert found is not None
        mean, low, high = (points(value) for value in (found.mean, found.low, found.high))
        yield DETAILS, "Over eight seeds the router", f"({mean}, {low} to {high})"
        yield SUMMARY, title, f"{mean} points ({low} to {high})"


def beyond_the_state() -> Iterator[tuple[str, str, str]]:
    """What each run of the hard recall task recalls, and at which cost."""
    title = {
        "dynamic": "**the learned router** |", "random": "random |",
        "static_3to1": "3:1, heads share keys and values |", "window": "softmax over a window of 153 tokens |",
    }  # fmt: skip
    for folder in sorted((RESULTS / "recall_hard").iterdir()):
        arm, seed = folder.name.split("-seed")
        record = read(f"recall_hard/{folder.name}/record.json")
        flops, read_bytes = record["flops"]["executed_per_token"], record["cache"]["read_per_token"]
        recall = f"{100 * record['recall']['by_length'][0]['accuracy']:.1f} %"
        yield RECALL, f"{title[arm]} {seed} |", f"| {flops / 1e3:.1f} k | {read_bytes / 1e3:.1f} k |"
        yield RECALL, f"{title[arm]} {seed} |", f"**{recall}**" if arm == "dynamic" else recall
    dynamic, random = (
        {
            seed: read(f"recall_hard/{arm}-seed{seed}/record.json")["recall"]["by_length"][0]["accuracy"]
            for seed in (1, 2, 3)
        }
        for arm in ("dynamic", "random")
    )
    eighths = {
        "dynamic-seed1": "the learned router | 1 | 322",
        "dynamic_asked-seed1": "the same, `surrogate: asked` | 1 |",
        "dynamic_asked-seed2": "the same, `surrogate: asked` | 2 |",
        "static_3to1-seed1": "3:1, heads share keys and values | 1 | 327.9",
    }
    told = {f"recall_hard_eighth/{run}": row for run, row in eighths.items()}
    told["recall_hard_eighth_long/dynamic_asked-seed5"] = "`surrogate: asked`, 9,000 steps | 5 |"
    for run, row in told.items():
        record = read(f"{run}/record.json")
        flops, read_bytes = record["flops"]["executed_per_token"], record["cache"]["read_per_token"]
        recall = f"{100 * record['recall']['by_length'][0]['accuracy']:.1f} %"
        yield RECALL, row, f"| {flops / 1e3:.1f} k | {read_bytes / 1e3:.1f} k | {recall} |"
    found = by_seed(dynamic, random)
    assert found is not None
    mean, low, high = (points(value) for value in (found.mean, found.low, found.high))
    yield SUMMARY, "recall of 128 pairs", f"{mean} points ({low} to {high})"
    yield (
        README,
        "recall of 128 pairs",
        "+{:.0f} points (+{:.0f} to +{:.0f})".format(
            *(100 * value for value in (found.mean, found.low, found.high))
        ),
    )


@pytest.mark.parametrize(
    "told", [leads, halves, published, programs, trained, answers, times, recalled, beyond_the_state]
)
def test_documents_tell_what_the_records_hold(told: Any) -> None:
    claims = list(told())
    assert claims
    for page, where, text in claims:
        # A row of a table is a line; a sentence may go on in the next ones.
        paragraphs = (ROOT / page).read_text(encoding="utf-8").replace("|\n", "|\n\n").split("\n\n")
        rows = [" ".join(part.split()) for part in paragraphs if where in " ".join(part.split())]
        assert any(text in row for row in rows), (page, where, text, rows)
