"""Records that lack something, or differ in something: no number is made of what cannot be compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.capabilities.skipping.words import cost_sentence
from layerroute.lab.arms import Arm, mean_gap
from layerroute.lab.compare import DIFFERENT_DATA, Comparison, compare
from layerroute.lab.domains import compare_domains
from layerroute.lab.fairness import unequal, unlike_treatment
from layerroute.lab.reading import place
from layerroute.lab.retention import Scores, retention
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record, sites
from tests.unit.lab.test_skipping_comparison import run as skipping_run


def of(content: dict[str, Any]) -> Run:
    return Run(content, Path(f"{content['run']}/record.json"))


def attention(more: Mapping[str, Any] = {}) -> list[dict[str, Any]]:
    """Two seeds of a router and of a baseline, each with sections ``more`` besides."""
    arms = {"dyn": {"rates": sites(0.5, 0.5)}, "baseline": {}}
    return [record(arm, seed, **own) | dict(more) for arm, own in arms.items() for seed in (1, 2)]


def compared(records: list[dict[str, Any]], **options: Any) -> Comparison:
    return compare([of(content) for content in records], **options)


def full_depth(seed: int, loss: float) -> Run:
    run = skipping_run("full", seed, skip=0.0, above=0.0, control="static")
    run.record["recipe"]["start"] = {"method": "fresh"}
    run.record["metrics"]["validation_loss"] = loss
    return run


def test_what_is_above_full_depth_is_a_difference_of_the_same_seeds() -> None:
    """Seeds differ by more than arms do: a mean over other seeds would be of them."""
    tokens = []
    for seed, floor in ((1, 3.0), (2, 3.4), (3, 3.8)):
        tokens.append(skipping_run("token", seed, skip=0.25, above=0.1))
        tokens[-1].record["metrics"]["validation_loss"] = floor + 0.1
    found = compare([*tokens, full_depth(1, 3.0)])
    rows = {row["Arm"]: row for row in found.tables["main"].to_dict()["rows"]}
    assert rows["token"]["Above full"] == pytest.approx(0.1)
    assert "+0.100 nats" in cost_sentence(found)
    found = compare([*tokens[1:], full_depth(1, 3.0)])
    rows = {row["Arm"]: row for row in found.tables["main"].to_dict()["rows"]}
    assert rows["token"]["Above full"] == "–" and cost_sentence(found) == ""


def test_a_gap_of_two_arms_needs_a_seed_of_both() -> None:
    one, other = (
        Arm(name, (of(record(name, seed, loss=loss)),)) for name, seed, loss in (("a", 1, 3), ("b", 2, 4))
    )
    assert mean_gap(one, other, "metrics", "validation_loss") is None
    assert mean_gap(other, one.on(()), "metrics", "validation_loss") is None


@pytest.mark.parametrize("capability", ["attention", "skipping"])
def test_every_table_of_different_data_says_so(capability: str) -> None:
    places = [{"from": at, "to": at, "loss": 4.0, "tokens": 9} for at in (1, 2)]
    lengths = [{"multiple": at, "accuracy": 0.5, "length": 256 * at} for at in (1, 2)]
    if capability == "attention":
        runs = [of(content) for content in attention({"recall": {"by_length": lengths, "chance": 0.1}})]
    else:
        runs = [skipping_run("token", 1, skip=0.25, above=0.3), full_depth(1, 3.0)]
    for run in runs:
        run.record["validation"] = dict(run.record.get("validation") or {}) | {"by_position": places}
    runs[-1].record["data"]["fingerprint"] = "other"
    tables = compare(runs, allow_different_data=True).tables
    assert {"main", "differences", "runs", "positions"} <= set(tables)
    assert {name for name, table in tables.items() if DIFFERENT_DATA not in table.notes} == set()
    if capability == "skipping":
        assert {row["Above full"] for row in tables["main"].to_dict()["rows"]} == {"–"}


def test_a_key_that_says_nothing_does_not_make_another_arm() -> None:
    """Versions add keys. Training takes such a run for the same one, and goes on with it."""
    records = attention()
    for content in records[1::2]:
        content["recipe"]["data"]["copies"] = None
    assert {arm.label: arm.seeds for arm in compared(records).arms} == {"dyn": (1, 2), "baseline": (1, 2)}


@pytest.mark.parametrize(
    ("keys", "ours", "theirs"),
    [
        (("precision",), "fp32", "bf16"),
        (("recipe", "train", "weight_decay"), 0.1, 0.0),
        (("recipe", "adapt", "lora_rank"), 16, 0),
        (("recipe", "train", "wait_above"), 0.7, None),
    ],
)
def test_arms_that_were_trained_unalike_get_no_verdict(keys: tuple[str, ...], ours: Any, theirs: Any) -> None:
    arms = []
    for name, value in (("token", ours), ("greedy", theirs)):
        run = skipping_run(name, 1, skip=0.25, above=0.3)
        section = run.record
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
        arms.append(Arm(name, (run,)))
    (said,) = unlike_treatment(*arms)
    assert said.endswith(f"{ours} against {theirs}")
    assert unlike_treatment(arms[0], arms[0]) == []


def test_the_weight_of_distillation_is_told_and_bars_no_verdict() -> None:
    """What distillation brings is a question, too: an arm without it is its control."""
    arms = []
    for weight in (0.7, 0.0):
        run = skipping_run("token", 1, skip=0.25, above=0.3)
        run.record["recipe"]["objective"] = {"kd_weight": weight}
        arms.append(Arm(str(weight), (run,)))
    assert unlike_treatment(*arms) == []
    assert unequal(*arms) == ["weight of distillation 0.7 against 0.0"]


def test_shares_have_intervals_of_shares() -> None:
    """Few units widen an interval, which knows no bounds."""
    rates = {"a": np.array([[1.0], [1.0], [0.7]]), "b": np.array([[0.0], [0.0], [0.3]])}
    ends = [
        (one.low, one.high)
        for one in compare_domains(rates, {"a": [1] * 3, "b": [1] * 3}, ["s"], "softmax").domains
    ]
    assert ends[0][1] == 1.0 and ends[1][0] == 0.0
    key = ("task", "acc")
    base = Scores(label="base", skipped=0, values={key: [1.0] * 4}, executed={key: 1.0})
    routed = Scores(label="routed", skipped=0.2, values={key: [0.0, 0.0, 0.0, 1.0]}, executed={key: 0.8})
    assert [change.low for change in retention(base, [routed]).kept] == [0.0]


def test_nothing_is_read_off_by_a_cost_that_was_not_counted() -> None:
    def arm(label: str, executed: dict[int, float]) -> Arm:
        return Arm(label, tuple(of(record(label, seed, executed=flops)) for seed, flops in executed.items()))

    low, high, at = arm("low", {1: 100.0, 2: 100.0}), arm("high", {1: 200.0}), arm("at", {1: 150.0})
    assert place([low, high], at, "rival") is not None
    del low.runs[0].record["flops"]["executed_per_token"]
    assert place([low, high], at, "rival") is None


def test_a_run_without_a_section_does_not_end_a_table() -> None:
    copies = {"length": 2, "beyond": 4, "within": "sequence"} | {
        part: {"loss": 1.0, "tokens": tokens} for part, tokens in (("copied", 5), ("rest", 50))
    }
    records = attention({"copies": copies})
    del records[0]["copies"]
    (note,) = [note for note in compared(records).tables["copies"].notes if "are copied" in note]
    assert "5 of 55 predicted tokens" in note


def test_recall_without_lengths_and_places_without_a_loss_end_no_table() -> None:
    recall = {"by_length": [{"multiple": 1, "accuracy": 0.5}], "chance": 0.1}
    places = [{"from": 1, "to": 1, "loss": None}, *({"from": at, "to": at, "loss": 4.0} for at in (2, 3))]
    tables = compared(attention({"recall": recall, "validation": {"by_position": places}})).tables
    assert "recall" in tables
    assert [column.label for column in tables["positions"].columns] == ["Model", "2", "3"]
