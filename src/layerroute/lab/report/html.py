"""The page: one HTML file with everything in it, that works from disk and asks the network for nothing."""

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from layerroute.lab.report.style import PAGE_COLOURS
from layerroute.lab.runs import TokenRoutes

_ID = re.compile(r'(?<=[\s"])id="([^"]+)"')
_REFERENCE = re.compile(r'(xlink:href="#|url\(#)([^")]+)')


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """A token of the interactive heatmap: its text, whether a line ends with it, and its decisions by site.

    ``choices`` is a string of path indices, ``shares`` the probabilities of the expensive path in percent, and
    ``bands`` a CSS gradient with a stripe for each site.
    """

    text: str
    breaks: bool
    choices: str
    shares: str
    bands: str


def environment() -> Environment:
    """Templates with autoescape on in HTML, and an error for any name that is not there."""
    made = Environment(
        loader=PackageLoader("layerroute.lab.report"),
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


def token_views(routes: TokenRoutes) -> list[list[TokenView]]:
    """Every stored sentence as tokens to show."""
    return [
        [
            TokenView(
                text=token.replace("\n", "⏎").replace("\r", "").replace("\t", "    ") or "∅",
                breaks="\n" in token,
                choices=" ".join(map(str, choices)),
                shares=" ".join(f"{100 * p:.0f}" for p in probabilities),
                bands=_bands(choices, probabilities),
            )
            for token, choices, probabilities in zip(*sentence, strict=True)
        ]
        for sentence in routes.sentences
    ]


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
