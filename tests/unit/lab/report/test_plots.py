"""The plots that figures are made of: what is drawn is what the data say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from layerroute.lab.report.plots import Panel, bars, curves, draw_points, maps
from layerroute.lab.report.style import BETWEEN, LineStyle, figure_style, new_figure, settle
from tests.unit.lab.report.walk import faults, texts_of

STYLES = {
    label: LineStyle(color=color, marker=marker)
    for label, color, marker in (("a", "#000000", "o"), ("b", "#ff0000", "s"))
}


def points(**changes: object) -> pd.DataFrame:
    data = {"panel": "one", "line": "a", "seed": [1, 1, 2, 2], "status": "completed", "x": [1, 40, 1, 40]}
    return pd.DataFrame({**data, "y": [4.0, 3.0, 4.2, 3.4], **changes})


def test_a_line_is_the_mean_of_completed_seeds_and_its_band_reaches_to_the_ends() -> None:
    axes = curves(points(), [Panel(name="one", star=True)], STYLES).axes[0]
    line, star = axes.lines
    assert list(line.get_ydata()) == pytest.approx([4.1, 3.2])
    assert (star.get_marker(), list(star.get_xdata())) == ("*", [40])
    (band,) = axes.collections
    ends = band.get_paths()[0].get_extents()
    assert (ends.y0, ends.y1) == pytest.approx((3.0, 4.2))


def test_a_run_that_did_not_complete_is_a_thin_line_of_its_own_and_does_not_set_the_scale() -> None:
    data = pd.concat([points(), points(seed=3, status="failed", y=[4.0, 500.0, 4.0, 500.0])])
    axes = curves(data, [Panel(name="one")], STYLES).axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([4.1, 3.2]), "in no mean"
    assert [line.get_marker() for line in axes.lines] == ["None", "None", "x"]
    assert axes.get_ylim()[1] < 10


def test_a_single_evaluation_is_a_point() -> None:
    (line,) = curves(points()[1:2], [Panel(name="one")], STYLES).axes[0].lines
    assert line.get_marker() == "o"


def test_lines_that_coincide_differ_in_width() -> None:
    both = pd.concat([points(), points(line="b")])
    first, second = curves(both, [Panel(name="one", ylim=(0, 9))], STYLES, nested=True).axes[0].lines
    assert first.get_linewidth() > second.get_linewidth()


def test_quartiles_are_bars_of_error() -> None:
    data = points(low=[3.5, 2.5, 3.7, 2.9], high=4.5)[:2]
    (bar,) = curves(data, [Panel(name="one")], STYLES).axes[0].collections
    assert [segment[:, 1].tolist() for segment in bar.get_segments()] == [[3.5, 4.5], [2.5, 4.5]]


def test_intervals_of_points_are_those_of_the_data_and_one_seed_has_none() -> None:
    axes = new_figure(3).add_subplot()
    rows = {"arm": ["a", "b"], "x": [1, 2], "y": [0.5, 4.0], "low": [0.0, np.nan], "high": [2.5, np.nan]}
    draw_points(axes, pd.DataFrame(rows | {"on_front": [True, True]}), STYLES)
    segments = [s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    assert [segment[:, 1].tolist() for segment in segments] == [[0.0, 2.5]]
    assert any(len(line.get_xdata()) == 2 for line in axes.lines), "the front"


def test_bars_of_all_panels_are_of_one_thickness_and_only_known_intervals_are_drawn() -> None:
    rows = [
        ("kind", "word (9)", 50.0, None, None),
        ("kind", "number (4)", 20.0, 10.0, 30.0),
        ("loss", "high (3)", 90.0, 80.0, 100.0),
    ]
    data = pd.DataFrame(rows, columns=["panel", "name", "value", "low", "high"], dtype=object).assign(
        color="red"
    )
    with figure_style():
        figure = bars(data, xlabel="decisions (%)", columns=2)
        settle(figure)
    kind, loss = figure.axes
    assert sum(len(c.get_segments()) for c in kind.collections if isinstance(c, LineCollection)) == 1
    thick = [axes.patches[0].get_window_extent().height for axes in (kind, loss)]
    assert thick[0] == pytest.approx(thick[1])
    assert kind.get_xlabel() == loss.get_xlabel() == "decisions (%)"


def test_a_map_shows_its_values_names_and_marks() -> None:
    table = pd.DataFrame([[45.0, np.nan], [-15.0, 0.0]], ["number (10)", "word (30)"], ["4", "7"])
    tables = {"By kind": table, "By place": table}
    figure = maps(
        tables, cmap=BETWEEN, ends=(-50, 50), xlabel="layer", marks={"By kind": [True, False]}, bar="points"
    )
    kind, place = figure.axes[:2]
    assert np.asarray(kind.images[0].get_array()) == pytest.approx(table.to_numpy(), nan_ok=True)
    assert [label.get_text() for label in kind.get_yticklabels()] == list(table.index)
    assert [label.get_text() for label in place.get_xticklabels()] == ["4", "7"]
    assert [(text.get_text(), text.get_position()[0]) for text in kind.texts] == [("*", 0)]
    assert not place.texts


def test_the_walk_sees_texts_that_are_cut_off_or_lie_on_others() -> None:
    figure = new_figure(3)
    for x, text in ((0.5, "one"), (0.5, "two"), (0.99, "outside"), (0.2, "")):
        figure.text(x, 0.5, text)
    figure.text(0.1, 0.1, "hidden", visible=False)
    assert [text for text, _ in texts_of(figure)] == ["one", "two", "outside"]
    assert faults(figure) == ["'outside' is cut off", "'one' lies on 'two'"]
