"""Rates and recall beyond the length of training: what the table and its sentence say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.recall.lengths import rate_sentence, recall_lengths
from layerroute.capabilities.recall.measures import rates_by_length
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record


def run(
    arm: str, seed: int, points: Mapping[int, tuple[float, float | None]], *, control: str | None = None
) -> Run:
    routed = any(rate is not None for _, rate in points.values())
    kinds: dict[str, Any] = {"pattern": ["gdn", "softmax"]}
    if routed:
        kinds = {"pattern": ["gdn", "routed"], "rates": {"layer1.mixer": 0.25}, "control": control}
    content = record(arm, seed, **kinds)
    content["recall"] = {
        "task": "mqar",
        "pairs": 16,
        "chance": 1 / 32,
        "by_length": [
            {
                "multiple": m,
                "length": 128 * m,
                "accuracy": found,
                "loss": 1.0,
                "answers": 9,
                "mean_rate": rate,
            }
            for m, (found, rate) in points.items()
        ],
        "by_distance": [],
    }
    return Run(content, Path(f"{arm}-{seed}/record.json"))


PICKS = {1: (0.99, 0.25), 4: (0.6, 0.0626), 16: (0.2, 0.0156)}
HOLDS = {1: (0.9, 0.25), 4: (0.8, 0.26), 16: (0.7, 0.24)}
DRIFTS = {1: (0.9, 0.25), 4: (0.8, 0.55), 16: (0.7, 0.30)}
PLAIN = {1: (1.0, None), 4: (0.5, None), 16: (0.2, None)}


def test_the_table_has_recall_and_rate_at_every_length() -> None:
    arms = compare_runs(
        [
            run("dynamic", 1, PICKS),
            run("dynamic", 2, {1: (0.97, 0.27), 4: (0.5, 0.0634), 16: (0.2, 0.0176)}),
            run("static", 1, PLAIN),
        ]
    ).arms
    table = recall_lengths(arms)
    assert table is not None
    assert [column.label for column in table.columns] == [
        "Model", "Recalled 1×", "Recalled 4×", "Recalled 16×", "Rate 1×", "Rate 4×", "Rate 16×",
    ]  # fmt: skip
    rows = {row.cells[0].text: [cell.value for cell in row.cells[1:]] for row in table.rows}
    assert rows["dynamic"] == pytest.approx([0.98, 0.55, 0.2, 0.26, 0.063, 0.0166])
    assert rows["static"][3:] == [1.0, 1.0, 1.0], "softmax for every token after the first layer"
    assert "1× is 128 tokens, 16× 2,048" in table.notes[0]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (HOLDS, "dynamic holds its rate: 25.0% at 1× and 24.0% at 16× (1 seed)."),
        (
            PICKS,
            "dynamic does not hold its rate but the number of tokens that it picks, about 32 a sequence at every "
            "length: 25.0% at 1× and 1.6% at 16× (1 seed).",
        ),
        (DRIFTS, "dynamic does not hold its rate: 25.0% at 1× and 30.0% at 16× (1 seed)."),
        ({1: (0.9, 0.25)}, ""),
    ],
    ids=["holds", "picks", "drifts", "one length"],
)
def test_what_is_said_of_a_learned_router(
    points: Mapping[int, tuple[float, float | None]], said: str
) -> None:
    arm = compare_runs([run("dynamic", 1, points)]).arms[0]
    assert rate_sentence(arm) == said


def test_a_mean_over_seeds_that_go_apart_is_not_called_steady() -> None:
    up, down = ({1: (0.9, 0.12), 16: (0.9, rate)} for rate in (0.23, 0.01))
    comparison = compare_runs([run("dynamic", 1, up), run("dynamic", 2, down)])
    assert rate_sentence(comparison.arms[0]) == (
        "dynamic does not hold its rate: 12.0% at 1× and 12.0% (1.0 to 23.0) at 16× (2 seeds)."
    )
    row = comparison.tables["recall_lengths"].rows[0]
    assert [cell.text for cell in row.cells] == ["dynamic", "90.0%", "90.0%", "12.0%", "12.0% (1.0 to 23.0)"]
    steady = {1: (0.9, 0.12), 16: (0.9, 0.12)}
    some = compare_runs([run("dynamic", 1, up), run("dynamic", 2, steady)])
    assert "does not hold its rate with every seed" in rate_sentence(some.arms[0])


def test_controls_and_static_arms_are_in_the_table_and_in_no_sentence() -> None:
    comparison = compare_runs(
        [run("dynamic", 1, PICKS), run("random", 1, HOLDS, control="random"), run("static", 1, PLAIN)]
    )
    table = comparison.tables["recall_lengths"]
    assert len(table.rows) == 3 and len(table.notes) == 2
    assert rates_by_length(next(arm for arm in comparison.arms if arm.label == "static")) == {}


def test_recall_by_distance_is_over_all_answers_and_only_where_they_are_enough() -> None:
    runs = [run("dynamic", 1, PICKS), run("dynamic", 2, PICKS), run("static", 1, PLAIN)]
    shares = {("dynamic", 1): (0.9, 0.5), ("dynamic", 2): (0.3, 0.5), ("static", 1): (1.0, 0.2)}
    answers = {("dynamic", 1): (30, 100), ("dynamic", 2): (10, 100), ("static", 1): (29, 100)}
    for one in runs:
        key = (str(one.record["arm"]), one.seed)
        one.record["recall"]["by_distance"] = [
            {"from": a, "to": b, "accuracy": share, "answers": count}
            for (a, b), share, count in zip(((16, 31), (32, 63)), shares[key], answers[key], strict=True)
        ]
    comparison = compare_runs(runs)
    table = comparison.tables["recall_distances"]
    assert [column.label for column in table.columns] == ["Model", "16–31", "32–63"]
    rows = {row.cells[0].text: [cell.value for cell in row.cells[1:]] for row in table.rows}
    assert rows["dynamic"] == pytest.approx([(0.9 * 30 + 0.3 * 10) / 40, 0.5])
    assert rows["static"] == [None, 0.2], "29 answers are too few"
    assert "recall_distances" not in compare_runs([run("dynamic", 1, PICKS)]).tables


def test_one_length_makes_no_table() -> None:
    assert recall_lengths(compare_runs([run("dynamic", 1, {1: (0.9, 0.25)})]).arms) is None
    assert "recall_lengths" not in compare_runs([Run(record("baseline", 1), Path("a/record.json"))]).tables
