"""Names beside points: none covers another or a point, in the plot, and each at its own point."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from layerroute.lab.report.labels import label_points
from layerroute.lab.report.style import figure_style, new_figure

# Pairs that all but coincide, and a point in a corner, as arms of one budget do.
CROWD = [
    (0.87, 4.010),
    (0.871, 4.009),
    (0.885, 3.73),
    (0.87, 3.725),
    (0.866, 3.84),
    (1.013, 3.41),
    (0.88, 3.72),
]


def drawn(points: list[tuple[float, float]], texts: list[str]) -> Axes:
    with figure_style():
        axes = new_figure(4.0, layout=None).add_axes((0.1, 0.1, 0.7, 0.8))
        axes.plot(*zip(*points, strict=True), "o", markersize=6)
        axes.margins(0.12)
        label_points(axes, points, texts)
    return axes


def boxes(axes: Axes) -> dict[str, Bbox]:
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    # The halo around letters and the line to the point are not what is read.
    return {text.get_text(): Bbox(super(type(text), text).get_window_extent()) for text in axes.texts}


def test_crowded_names_are_apart_inside_and_off_the_points() -> None:
    texts = [f"static_influence_{index}" for index in range(len(CROWD))]
    axes = drawn(CROWD, texts)
    found = boxes(axes)
    assert set(found) == set(texts)
    for one, other in itertools.combinations(texts, 2):
        assert Bbox.intersection(found[one], found[other]) is None, (one, other)
    for name, box in found.items():
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1, name
        for place in axes.transData.transform(CROWD):
            assert not box.contains(*place), (name, place)


def test_a_lone_name_stands_beside_its_point_without_a_line() -> None:
    axes = drawn([(0.0, 0.0), (1.0, 1.0)], ["a", "b"])
    found = boxes(axes)
    for text, point in (("a", (0.0, 0.0)), ("b", (1.0, 1.0))):
        middle = (found[text].p0 + found[text].p1) / 2
        assert np.hypot(*(middle - axes.transData.transform(point))) < 30
    assert all(text.arrow_patch is None for text in axes.texts)  # type: ignore[attr-defined]


def test_where_there_is_no_room_all_are_there_nevertheless() -> None:
    texts = [f"a very long name of an arm, number {index}" for index in range(60)]
    assert len(boxes(drawn([(0.5, 0.5)] * len(texts), texts))) == len(texts)
