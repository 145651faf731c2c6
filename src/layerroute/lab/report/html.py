"""The page: one HTML file with everything in it, that works from disk and asks the network for nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from layerroute.lab.format import path_name
from layerroute.lab.report.style import PAGE_COLOURS
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.table import Table, escape_text

if TYPE_CHECKING:
    from layerroute.lab.report.figures import FigureEntry

_ID = re.compile(r'(?<=[\s"])id="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href="#|url\(#)([^")]+)')


def environment(package: str = "") -> Environment:
    """Templates, those of ``package`` too, with autoescape on in HTML and an error for any name that is not there."""
    packages = ["layerroute.lab.report", *filter(None, [package])]
    made = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["code"] = with_code
    return made


def with_code(text: str) -> Markup:
    """``text`` as HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def inline_svg(path: Path) -> Markup:
    """An SVG file as part of the page: without prolog, fixed size or clashing ids, in the page's colours."""
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    view = re.search(r'viewBox="[^"]+"', head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    prefix = path.stem.replace("figure-", "f")
    rest = _ID.sub(rf'id="{prefix}-\1"', rest)
    rest = _REFERENCE.sub(rf"\g<1>{prefix}-\g<2>", rest)
    for colour, variable in PAGE_COLOURS.items():
        rest = rest.replace(colour, variable)
    view_box = view.group() if view else ""
    return Markup(
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box} aria-hidden="true" focusable="false">{rest}'
    )


def data_link(path: Path) -> str:
    """A file as part of the page: a link that saves it, wherever the page is."""
    return f"data:text/csv;base64,{base64.b64encode(path.read_bytes()).decode()}"


class Numbering:
    """Labels of a text's figures, ``Figure 2: Training curves``: from 1, in the order in which they are shown."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def __call__(self, figure: FigureEntry) -> str:
        """Its label; the title alone of a figure that is absent."""
        if figure.absent:
            return figure.title
        place = self._places.setdefault(figure.name, len(self._places) + 1)
        return f"Figure {place}: {figure.title}"


class Markdown(str):
    """Text that is Markdown already and needs no escaping."""


class Paper:
    """Tables and figures as Markdown, and which of them the text has not shown yet."""

    def __init__(self, tables: Mapping[str, Table], figures: Mapping[str, FigureEntry], folder: str) -> None:
        self._tables, self._figures, self._folder = dict(tables), dict(figures), folder
        self._left = dict.fromkeys([*figures, *tables])
        self._label = Numbering()

    @staticmethod
    def value(value: Any) -> Any:
        """What a template's expression comes to in Markdown."""
        return escape_text(value) if isinstance(value, str) and not isinstance(value, Markdown) else value

    @staticmethod
    def verbatim(text: str) -> Markdown:
        """``text`` as it is, for code."""
        return Markdown(text)

    def table(self, name: str) -> Markdown:
        """A table with its notes; the notes alone of one without rows; nothing for one that is not there."""
        self._left.pop(name, None)
        table = self._tables.get(name)
        if table is None:
            return Markdown("")
        if table.rows:
            return Markdown(f"{table.to_markdown()}\n")
        return Markdown(f"*{table.name}: {' '.join(map(escape_text, table.notes))}*\n")

    def figure(self, name: str) -> Markdown:
        """A figure with links to its files, or why it is absent."""
        self._left.pop(name, None)
        figure = self._figures[name]
        if figure.absent:
            return Markdown(f"*{escape_text(self._label(figure))}. {escape_text(figure.absent)}*\n")
        path, label = f"{self._folder}/{figure.name}", escape_text(self._label(figure))
        links = ", ".join(
            f"[{word}]({path}.{suffix})" for word, suffix in (("data", "csv"), ("SVG", "svg"), ("PDF", "pdf"))
        )
        return Markdown(f"![{label}]({path}.png)\n\n*{label}.* {escape_text(figure.caption)} ({links})\n")

    def blocks(self, blocks: Sequence[Any], cost: str) -> Markdown:
        """Blocks of a section of the paper."""
        parts = []
        for block in blocks:
            if block.kind == "cost":
                parts.append(f"{escape_text(cost)}\n" if cost else "")
            else:
                parts.append(self.table(block.name) if block.kind == "table" else self.figure(block.name))
        return Markdown("\n".join(filter(None, parts)))

    def rest(self) -> Markdown:
        """What has not been shown: figures, then tables."""
        shown = [
            self.figure(name) if name in self._figures else self.table(name) for name in list(self._left)
        ]
        return Markdown("\n".join(filter(None, shown)))


def tokens_view(routes: TokenRoutes, sentences: int = 24, tokens: int = 400) -> dict[str, Any]:
    """At most so many stored sentences of at most so many tokens, to hover over.

    A token has ``text``, ``breaks`` (whether a line ends with it), ``choices`` (path indices by site), ``shares`` (the
    expensive path's probabilities in percent) and ``bands`` (a CSS gradient with a stripe for each site).
    """
    found = [
        [
            {
                "text": token.replace("\n", "⏎").replace("\r", "").replace("\t", "    ") or "∅",
                "breaks": "\n" in token,
                "choices": " ".join(map(str, choices)),
                "shares": " ".join(f"{100 * p:.0f}" for p in probabilities),
                "bands": _bands(choices, probabilities),
            }
            for token, choices, probabilities in zip(*sentence, strict=True)
        ]
        for sentence in routes.sentences[:sentences]
    ]
    return {
        "sites": routes.sites,
        "paths": [path_name(path) for path in routes.paths],
        "sentences": [sentence[:tokens] for sentence in found],
        "cut": [max(0, len(sentence) - tokens) for sentence in found],
        "height": min(60, max(6, 5 * len(routes.sites))),
    }


def _bands(choices: tuple[int, ...], probabilities: tuple[float, ...]) -> str:
    size = len(choices)
    stops = []
    for index, (choice, probability) in enumerate(zip(choices, probabilities, strict=True)):
        strength = 0.25 + 0.75 * min(1.0, 2 * abs(probability - 0.5))
        colour = "224,123,26" if choice else "47,111,183"
        start, end = 100 * index / size, 100 * (index + 1) / size
        stops.append(f"rgba({colour},{strength:.2f}) {start:.4g}% {end:.4g}%")
    return (
        f"linear-gradient({','.join(stops)})" if len(stops) > 1 else f"linear-gradient({stops[0]},{stops[0]})"
    )
