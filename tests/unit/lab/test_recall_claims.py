"""Recall: which arms a learned router is held against, and what is said of the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.recall.measures import recall_by_seed
from layerroute.capabilities.recall.question import QUESTION, recall_sentence
from layerroute.lab.at_cost import by_kind
from layerroute.lab.claims import claims
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record

TWO = ["gdn", "routed"]


def run(
    arm: str, seed: int, recalled: float, *, executed: float = 2e6, read: float | None = None, **settings: Any
) -> Run:
    content = record(arm, seed, loss=5 - recalled, **settings)
    content["flops"]["executed_per_token"] = executed
    if read is not None:
        content["cache"] = {"read_per_token": read, "keys_values": read, "state": 0.0, "context_length": 128}
    points = [
        {"multiple": m, "length": 128 * m, "accuracy": recalled / m, "loss": 1.0, "answers": 9}
        for m in (1, 4)
    ]
    content["recall"] = {
        "task": "mqar",
        "pairs": 16,
        "chance": 1 / 32,
        "by_length": points,
        "by_distance": [],
    }
    return Run(content, Path(f"{arm}-{seed}/record.json"))


def routed(arm: str, seed: int, recalled: float, *, rate: float = 0.25, control: str | None = None) -> Run:
    return run(arm, seed, recalled, pattern=TWO, rates={"layer1.mixer": rate}, control=control)


def study(seeds: tuple[int, ...] = (1, 2, 3)) -> Comparison:
    runs = []
    for seed in seeds:
        wobble = 0.01 * (-1) ** seed
        runs += [
            routed("dynamic", seed, 0.95 + wobble),
            routed("dynamic_eighth", seed, 0.6, rate=0.125),
            routed("random", seed, 0.25 + 0.5 * wobble, control="random"),
            routed("random_eighth", seed, 0.15 - wobble, rate=0.125, control="random"),
            routed("periodic", seed, 0.2, control="periodic"),
            run("narrow", seed, 0.95 - wobble, pattern=["gdn", "gdn", "gdn", "softmax"], executed=2.005e6),
            run("wide", seed, 0.99, pattern=["gdn", "softmax"], executed=2.2e6),
            run("all_softmax", seed, 0.99, pattern=["softmax"] * 2),
            run("all_gdn", seed, 0.11, pattern=["gdn"] * 2),
        ]
    return compare_runs(runs)


def test_each_router_meets_the_controls_of_its_own_rate_and_of_its_own_flops() -> None:
    found = {
        (pair.subject.label, role): pair.rival.label
        for pair in claims(QUESTION, study().arms)
        for role in pair.roles
    }
    assert found == {
        ("dynamic", "random at its rate"): "random",
        ("dynamic", "periodic at its rate"): "periodic",
        ("dynamic", "static at its FLOPs"): "narrow",
        ("dynamic", "softmax where it routes"): "wide",
        ("dynamic", "all-softmax"): "all_softmax",
        ("dynamic", "all-GDN"): "all_gdn",
        ("dynamic_eighth", "random at its rate"): "random_eighth",
        ("dynamic_eighth", "static at its FLOPs"): "narrow",
        ("dynamic_eighth", "softmax where it routes"): "wide",
        ("dynamic_eighth", "all-softmax"): "all_softmax",
        ("dynamic_eighth", "all-GDN"): "all_gdn",
    }


def test_what_is_said_follows_from_the_seeds() -> None:
    comparison = study()
    pairs = {
        (pair.subject.label, role): pair for pair in claims(QUESTION, comparison.arms) for role in pair.roles
    }
    best = pairs["dynamic", "random at its rate"]
    assert best.word == "recalls more"
    assert best.difference is not None
    assert best.difference.mean == pytest.approx(0.70 - 0.005 / 3)
    assert pairs["dynamic", "static at its FLOPs"].word == "cannot be told"
    (sentence,) = comparison.answers_beside
    assert "recalls more than random (+69.8 points, 95% " in sentence
    assert "cannot be told from narrow" in sentence and "points would go unseen" in sentence
    assert sentence in comparison.verdict
    assert "Not held against" not in sentence


def test_one_seed_claims_nothing() -> None:
    comparison = study(seeds=(1,))
    equal = [pair for pair in claims(QUESTION, comparison.arms) if pair.rival.label != "wide"]
    assert {pair.word for pair in equal} == {"one seed: cannot tell"}
    assert "may be chance" in comparison.answers_beside[0]


def test_missing_controls_are_named() -> None:
    comparison = study()
    kept = [arm for arm in comparison.arms if arm.label in ("dynamic", "all_gdn")]
    sentence = recall_sentence(replace(comparison, arms=tuple(kept), subject=kept[0]))
    assert (
        "Not held against random at its rate, periodic at its rate, static at its FLOPs, softmax" in sentence
    )


def test_tables_hold_every_arm_and_every_pair() -> None:
    comparison = study()
    table = comparison.tables["recall"]
    assert {row.cells[0].text for row in table.rows} == {arm.label for arm in comparison.arms}
    assert table.columns[-1].label == "Recalled at 4×"
    cells = {row.cells[0].text: row.cells for row in table.rows}
    assert cells["dynamic"][3].value == pytest.approx(0.25)
    assert cells["all_softmax"][5].value == pytest.approx(0.99)
    assert len(comparison.tables["recall_differences"].rows) == len(claims(QUESTION, comparison.arms)) == 11


def test_an_arm_of_other_cost_is_shown_and_gets_no_verdict() -> None:
    comparison = study()
    wide = next(pair for pair in claims(QUESTION, comparison.arms) if pair.rival.label == "wide")
    assert wide.word == "no verdict: −9.1% executed FLOPs per token" and wide.p_adjusted is None
    assert "has no verdict against wide (−4." in comparison.answers_beside[0]
    row = next(row for row in comparison.tables["recall_differences"].rows if "− wide" in row.cells[0].text)
    assert row.cells[3].text.startswith("−4.") and row.cells[-1].text.startswith("no verdict")


def test_without_recall_data_there_is_no_such_table() -> None:
    comparison = compare_runs([Run(record("baseline", 1), Path("a/record.json"))])
    assert "recall" not in comparison.tables and comparison.answers_beside == []
    assert recall_by_seed(comparison.arms[0]) == {}


def test_what_only_one_comparison_would_have_shown_is_said_so() -> None:
    pair = next(pair for pair in claims(QUESTION, study().arms) if pair.rival.label == "random")
    doubtful = replace(pair, p_adjusted=0.09)
    assert doubtful.word == "recalls more, before correction"
    assert doubtful.phrase.startswith("is ahead of random (+69.8 points")
    assert doubtful.phrase.endswith("but p = 0.090 when corrected for the number of comparisons")
    noisy = next(pair for pair in claims(QUESTION, study().arms) if pair.rival.label == "narrow")
    assert replace(noisy, p_adjusted=0.09).word == "cannot be told"


# Both costs at once


def priced(**changed: tuple[float, float, float]) -> Comparison:
    """A router at 2.0 MFLOP and 40 kB among rivals, each recall, FLOPs and bytes; ``changed`` are laid over them."""
    rivals = {
        "window": (0.2, 1.9e6, 30e3),
        "window_more": (0.4, 2.1e6, 50e3),
        "narrow": (0.99, 2.005e6, 41e3),
        "random": (0.3, 2.0e6, 40e3),
        **changed,
    }
    patterns = {"window": ["gdn", "window"], "narrow": ["gdn", "gdn", "gdn", "softmax"]}
    runs = []
    for seed in (1, 2, 3, 4):
        wobble = 0.01 * (-1) ** seed
        own = {"pattern": TWO, "rates": {"layer1.mixer": 0.25}}
        runs.append(run("dynamic", seed, 0.9 + wobble, read=40e3, **own))
        for name, (recalled, flops, read) in rivals.items():
            kind = name.partition("_")[0]
            how = {"control": "random", **own} if kind == "random" else {"pattern": patterns[kind]}
            noise = 0.01 * ((seed + len(name)) % 3 - 1)
            runs.append(run(name, seed, recalled + noise, executed=flops, read=read, **how))
    return compare_runs(runs)


def test_rivals_are_held_against_a_router_at_both_of_its_costs() -> None:
    comparison = priced()
    found = {one.rival.label: one for one in by_kind(QUESTION, comparison.arms)}
    assert {name: one.how for name, one in found.items()} == {
        "window": "the rival, between window and window_more, 50% of the way",
        "narrow": "neither: equal cost",
        "random": "neither: equal cost",
    }
    read = found["window"]
    assert read.difference is not None and read.difference.seeds == (1, 2, 3, 4)
    assert read.difference.mean == pytest.approx(0.9 - 0.3, abs=0.01)
    assert read.word == "recalls more, as read", "the line is to the rival's disadvantage, and it is said so"
    assert found["narrow"].word == "recalls less"
    assert found["random"].word == "recalls more"
    table = comparison.tables["recall_at_cost"]
    assert [row.cells[-1].text for row in table.rows] == [
        one.word for one in by_kind(QUESTION, comparison.arms)
    ]
    assert {column.label for column in comparison.tables["recall"].columns} >= {"Bytes/token, read"}


@pytest.mark.parametrize(
    "changed",
    [
        {"window": (0.2, 1.9e6, 60e3), "window_more": (0.4, 2.1e6, 100e3)},  # twice the bytes in between
        {
            "window": (0.2, 2.1e6, 30e3),
            "window_more": (0.4, 2.2e6, 50e3),
        },  # dearer, both: nothing is extrapolated
    ],
)
def test_a_kind_that_is_not_at_the_cost_gets_no_row(changed: dict[str, tuple[float, float, float]]) -> None:
    assert {one.rival.label for one in by_kind(QUESTION, priced(**changed).arms)} == {"narrow", "random"}


def test_equal_flops_at_more_bytes_are_no_equal_cost() -> None:
    comparison = priced(narrow=(0.99, 2.005e6, 80e3))
    assert "narrow" not in {one.rival.label for one in by_kind(QUESTION, comparison.arms)}
    pair = next(pair for pair in claims(QUESTION, comparison.arms) if pair.rival.label == "random")
    assert pair.word == "recalls more"
    assert ("dynamic", "narrow") not in {
        (p.subject.label, p.rival.label) for p in claims(QUESTION, comparison.arms)
    }
    rows = comparison.tables["recall_differences"].notes
    assert "bytes of caches read within 5%" in rows[0]
    softmax = run("all_softmax", 1, 0.99, read=160e3, pattern=["softmax"] * 2)
    runs = [r for arm in comparison.arms for r in arm.runs]
    dear = next(
        p for p in claims(QUESTION, compare_runs([*runs, softmax]).arms) if p.rival.label == "all_softmax"
    )
    assert dear.word == "no verdict: −75.0% bytes of caches read per token"


def test_records_without_bytes_are_shown_as_ever() -> None:
    comparison = study()
    assert "recall_at_cost" not in comparison.tables
    assert "Bytes/token, read" not in {column.label for column in comparison.tables["recall"].columns}
    assert "bytes" not in comparison.tables["recall_differences"].notes[0]
