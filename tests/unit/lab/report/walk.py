"""Helps to draw figures from made-up runs, and to see what texts they show where."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from layerroute.lab.compare import compare
from layerroute.lab.question import questions
from layerroute.lab.report.build import view_of
from layerroute.lab.report.figures import Drawn, FigureSpec, View
from layerroute.lab.report.page import Page
from layerroute.lab.report.style import figure_style, settle
from layerroute.lab.runs import Run

ATTENTION, SKIPPING = "attention_routing", "layer_skipping"


def page(capability: str) -> Page:
    """What a capability says of its report."""
    found: Page = next(one.page() for one in questions() if one.page and one.capability == capability)
    return found


def view(runs: Sequence[Run], capability: str = ATTENTION, bench: Sequence[dict[str, Any]] = ()) -> View:
    """The view of runs."""
    return view_of(compare(runs), page(capability), bench)


def spec(name: str, capability: str = ATTENTION) -> FigureSpec:
    """A figure by name."""
    return next(one for one in page(capability).figures if one.name == name)


def drawn(name: str, shown: View, capability: str = ATTENTION) -> Drawn:
    """A figure that must be there, laid out."""
    with figure_style():
        found = spec(name, capability).draw(shown)
        assert not isinstance(found, str), found
        settle(found[0])
    return found


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that the figure really shows, with its box in pixels."""
    seen: list[Text] = []
    draw = Text.draw

    def noted(self: Text, renderer: Any, *rest: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        draw(self, renderer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        figure.canvas.draw()
    return [(text.get_text(), Bbox(Text.get_window_extent(text))) for text in dict.fromkeys(seen)]


def faults(figure: Figure) -> list[str]:
    """Texts that are cut off, and pairs that cover each other by more than a hair."""
    width, height = figure.get_size_inches() * figure.dpi
    texts = texts_of(figure)
    found = [
        f"{text!r} is cut off"
        for text, box in texts
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    for (one, first), (other, second) in itertools.combinations(texts, 2):
        shared = Bbox.intersection(first, second)
        if shared is not None and shared.width > 2 and shared.height > 2:
            found.append(f"{one!r} lies on {other!r}")
    return found
