"""Figures 6 and 7: their data, the front, and that they are drawn from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from layerroute.capabilities.recall.measures import softmax_rate
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.figures import _cost, _recall
from layerroute.lab.report.figures_study import _beside, cost_data, cost_figure, recall_data, recall_figure
from layerroute.lab.report.style import figure_style, save_figure
from layerroute.lab.runs import Run
from layerroute.lab.statistics import pareto_front
from tests.unit.lab.record_factory import record, sites


def run(
    arm: str, seed: int, *, executed: float | None, recalled: float | None = None, **settings: Any
) -> Run:
    content = record(arm, seed, **settings)
    content["flops"]["executed_per_token"] = executed
    if recalled is not None:
        rate = None if content["routing"] is None else content["routing"]["mean_rate"]
        points = [
            {
                "multiple": m,
                "length": 128 * m,
                "accuracy": recalled / m,
                "loss": 1.0,
                "answers": 9,
                "mean_rate": rate,
            }
            for m in (1, 2, 4)
        ]
        content["recall"] = {
            "task": "mqar",
            "pairs": 16,
            "chance": 1 / 32,
            "by_length": points,
            "by_distance": [],
        }
    return Run(content, Path(f"{arm}-{seed}/record.json"))


@pytest.fixture
def comparison() -> Comparison:
    rates = sites(0.25, 0.25)
    runs = []
    for seed in (1, 2, 3):
        runs += [
            run("baseline", seed, executed=3e6, recalled=0.9, loss=4.0 + seed / 100),
            run("dynamic", seed, executed=2e6, recalled=0.8, loss=4.2 + seed / 100, rates=rates),
            run(
                "random",
                seed,
                executed=2.5e6,
                recalled=0.3,
                loss=4.5 + seed / 100,
                rates=rates,
                control="random",
            ),
        ]
    return compare_runs(runs)


def test_the_front_leaves_out_what_another_arm_beats(comparison: Comparison) -> None:
    data = cost_data(comparison)
    assert len(data) == 9
    front = data.groupby("arm")["on_front"].first().to_dict()
    assert front == {"baseline": True, "dynamic": True, "random": False}
    assert data["half_width_95"].iloc[0] == pytest.approx(0.0248, abs=1e-3)


def test_a_point_is_beaten_only_by_what_is_no_worse_in_anything() -> None:
    points = {"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (2.0, 2.5), "d": (3.0, 1.0), "e": (1.0, 3.0)}
    assert pareto_front(points) == ["a", "e", "b", "d"]
    assert pareto_front({}) == []


def test_recall_is_told_by_rate_and_by_length(comparison: Comparison) -> None:
    data = recall_data(comparison)
    assert len(data) == 27
    rates = data.groupby("arm")["rate"].first().to_dict()
    # Three layers after the first: gdn, gdn, softmax; and two routed ones at a quarter, then softmax.
    assert rates == pytest.approx({"baseline": 1 / 3, "dynamic": 0.5, "random": 0.5})


@pytest.mark.parametrize(
    ("pattern", "routed", "expected"),
    [
        (["gdn", "softmax"], None, 1.0),
        (["gdn", "gdn"], None, 0.0),
        (["softmax", "softmax"], None, 1.0),
        (["gdn", "routed"], 0.25, 0.25),
        (["gdn", "routed"], None, None),
    ],
)
def test_the_rate_is_of_the_layers_after_the_first(
    pattern: list[str], routed: float | None, expected: float | None
) -> None:
    arm = Arm("a", (Run(record("a", pattern=pattern), Path("a/record.json")),))
    assert softmax_rate(arm, routed) == expected


def test_both_are_drawn_and_the_same_records_give_the_same_bytes(
    comparison: Comparison, tmp_path: Path
) -> None:
    with figure_style():
        for folder in ("one", "two"):
            for make in (_cost, _recall):
                entry, figure, data = make(comparison)
                assert figure is not None and not data.empty and "interval" in entry.caption
                save_figure(figure, tmp_path / folder, entry.name, formats=("svg",))
    for name in ("figure-6.svg", "figure-7.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_arms_of_one_rate_stand_side_by_side_and_others_where_they_are() -> None:
    moved = _beside({"a": 25.0, "b": 25.3, "c": 24.9, "alone": 50.0, "e": 100.0, "f": 100.0})
    places = {"a": 25.0, "b": 25.3, "c": 24.9, "e": 100.0, "f": 100.0}
    assert moved["alone"] == 0
    near = sorted(places[name] + moved[name] for name in "abc")
    assert near[1] - near[0] == pytest.approx(2.2) and sum(near) / 3 == pytest.approx(25.067, abs=1e-3)
    assert abs(moved["e"] - moved["f"]) == pytest.approx(2.2)


def test_intervals_of_shares_end_at_nothing_and_all(comparison: Comparison) -> None:
    data = recall_data(comparison)
    data.loc[(data["arm"] == "baseline") & (data["seed"] == 1), "accuracy"] = 0.05  # a wide interval
    left = recall_figure(comparison, data).axes[0]
    ends = np.concatenate(
        [
            part
            for bars in left.collections
            if isinstance(bars, LineCollection)
            for part in bars.get_segments()
        ]
    )
    assert ends[:, 1].max() == pytest.approx(100.0) and ends[:, 1].min() >= -1e-9


@pytest.mark.parametrize(("flops", "unit"), [(2e5, "thousands"), (2e6, "millions"), (3e9, "billions")])
def test_the_axis_of_flops_has_a_unit_that_fits(flops: float, unit: str) -> None:
    runs = [run(arm, 1, executed=flops * (1 + index / 10)) for index, arm in enumerate(("baseline", "other"))]
    together = compare_runs(runs)
    axes = cost_figure(together, cost_data(together)).axes[0]
    assert unit in axes.get_xlabel()
    assert 0.1 < axes.get_xlim()[1] < 1000


def test_without_their_data_they_say_why_they_are_absent() -> None:
    alone = compare_runs([run("baseline", 1, executed=None)])
    for make in (_cost, _recall):
        entry, figure, _ = make(alone)
        assert figure is None and entry.absent.startswith("Not drawn")
