"""Figures of both reports: their data come from the records, and what is missing is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.figures import _annealing, _bars, _heads, _kinds
from layerroute.lab.report.figures_common import (
    annealing_data,
    annealing_figure,
    bars_data,
    bars_figure,
    bars_note,
    bars_start,
    draw_points,
    heads_data,
    heads_figure,
)
from layerroute.lab.report.figures_kinds import kinds_data, kinds_figure
from layerroute.lab.report.style import WIDTH, LineStyle, new_figure
from layerroute.lab.runs import load_runs
from layerroute.lab.tokens import token_groups
from tests.unit.lab.record_factory import make_run, sites


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    for seed in (1, 2):
        make_run(tmp_path, "baseline", seed, loss=4.0 + 0.02 * seed)
        make_run(tmp_path, "dynamic", seed, loss=3.9, rates=sites(0.3, 0.4))
        make_run(tmp_path, "random", seed, loss=4.2, rates=sites(0.3, 0.4), control="random")
    heads = {f"layer{layer}.head{head}": 0.1 * head + 0.2 * layer for layer in (1, 2) for head in range(3)}
    make_run(tmp_path, "per_head", 1, rates=heads, heads=3)
    return compare_runs(load_runs([tmp_path]))


def test_bars_are_means_with_intervals_where_there_are_seeds(comparison: Comparison) -> None:
    data = bars_data(comparison.arms).set_index("arm")
    assert data.loc["baseline", "validation_loss"] == pytest.approx(4.03)
    assert data.loc["baseline", "half_width_95"] == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert np.isnan(float(data.loc["per_head", "half_width_95"])), "one seed has no interval"
    axes = bars_figure(bars_data(comparison.arms), {}).axes[0]
    assert axes.get_xlim()[0] < 3.9
    assert len(axes.patches) == 4


def test_the_map_has_a_cell_for_every_layer_and_head(comparison: Comparison) -> None:
    data = heads_data(comparison.arms)
    assert set(data["arm"]) == {"per_head"}, "arms whose heads choose together have no map"
    cell = data[(data["layer"] == 2) & (data["head"] == 1)]["rate"].iloc[0]
    assert cell == pytest.approx(0.5)
    figure = heads_figure(data, "softmax")
    assert figure.axes[0].images[0].get_array().shape == (2, 3)


def test_only_learned_routers_anneal(comparison: Comparison) -> None:
    data = annealing_data(comparison.arms)
    assert set(data["arm"]) == {"dynamic", "per_head"}
    temperature = data[(data["arm"] == "dynamic") & (data["what"] == "temperature")]
    assert temperature["value"].iloc[0] > temperature["value"].iloc[-1] == pytest.approx(0.5)
    figure = _annealing(comparison)[1]
    assert figure is not None
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == [
        "Temperature",
        "Training tokens on softmax",
    ]


def test_kinds_are_drawn_a_panel_for_each_cut(comparison: Comparison) -> None:
    subject = comparison.subject
    assert subject is not None
    routes = subject.example.token_routes
    assert routes is not None
    groups = token_groups(routes)
    data = kinds_data(groups)
    assert list(data["rate"]) == [kind.rate for kind in groups["kind"].kinds]
    assert len(kinds_figure(data, "softmax").axes) == len(groups)


def test_the_caption_says_where_bars_begin_only_if_it_is_not_0() -> None:
    close = pd.DataFrame({"arm": ["a", "b"], "validation_loss": [3.7, 3.9], "half_width_95": [0.05, None]})
    wide = close.assign(validation_loss=[0.003, 3.4])
    assert bars_start(close) > 3 and "does not begin at 0" in bars_note(close)
    assert bars_start(wide) == 0 and bars_note(wide) == ""


def test_kinds_without_an_interval_have_no_bar_of_error_and_every_panel_has_its_axis() -> None:
    rows = [
        ("kind", "word", 9, 0.5, None, None),
        ("kind", "number", 4, 0.2, 0.1, 0.3),
        ("loss", "high", 3, 0.9, 0.8, 1),
    ]
    data = pd.DataFrame(rows, columns=["by", "kind", "tokens", "rate", "low_95", "high_95"], dtype=object)
    kind, loss = kinds_figure(data, "softmax").axes
    segments = [len(c.get_segments()) for c in kind.collections if isinstance(c, LineCollection)]
    assert sum(segments) == 1
    assert kind.get_xlabel() == loss.get_xlabel() == "decisions for softmax (%)"
    thick = [axes.patches[0].get_window_extent().height for axes in (kind, loss)]
    assert thick[0] == pytest.approx(thick[1])


def test_a_flat_rate_is_not_at_the_edge_and_lines_that_coincide_differ_in_width() -> None:
    rows = [
        (arm, 1, what, step, value)
        for arm in ("one", "two")
        for what, value in (("temperature", 1.0), ("mean rate in training", 0.75))
        for step in (1, 40)
    ]
    data = pd.DataFrame(rows, columns=["arm", "seed", "what", "step", "value"])
    temperature, rate = annealing_figure(data, {}, "that run").axes
    assert list(rate.lines[0].get_ydata()) == [75.0, 75.0] and rate.get_ylim()[1] > 100
    assert temperature.get_ylim()[1] > 1.0
    assert rate.lines[0].get_linewidth() > rate.lines[1].get_linewidth()


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", 1)
    alone = compare_runs(load_runs([tmp_path]))
    for make in (_bars, _kinds, _annealing, _heads):
        entry, figure, _ = make(alone)
        assert figure is None and entry.absent.startswith("Not drawn: ")


def test_intervals_of_a_loss_end_at_0() -> None:
    axes = new_figure(WIDTH, 3).add_subplot()
    means = pd.DataFrame(
        {
            "arm": ["a", "b"],
            "cost": [1, 2],
            "loss": [0.5, 4.0],
            "half_width": [2.0, 1.0],
            "on_front": [True, False],
        }
    )
    draw_points(axes, means, {label: LineStyle(color="#000000", dashes="-") for label in "ab"})
    bars = [c.get_segments()[0] for c in axes.collections if isinstance(c, LineCollection)]
    assert [[float(y) for y in segment[:, 1]] for segment in bars] == [[0.0, 2.5], [3.0, 5.0]]
