"""Where single tokens went: a map a sentence, and the tokens as the page and the data show them."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from layerroute.lab.format import path_name
from layerroute.lab.report.style import (
    GDN,
    GDN_PALE,
    MUTED,
    PAPER,
    SOFTMAX,
    SOFTMAX_PALE,
    WIDTH,
    clip,
    new_figure,
)
from layerroute.lab.runs import TokenRoutes

if TYPE_CHECKING:
    import pandas as pd

SENTENCES_SHOWN = 12
TOKENS_SHOWN = 26
MOST_NAMED_SITES = 8
_ROW = 0.148  # inches
# From one path to the other. Next to a draw each keeps its pale colour: which path was taken is always seen.
_COLOURS = LinearSegmentedColormap.from_list(
    "routes", [(0, GDN), (0.5, GDN_PALE), (0.5, SOFTMAX_PALE), (1, SOFTMAX)]
)


def tokens_data(routes: TokenRoutes) -> pd.DataFrame:
    """One row a token and site, of all sentences."""
    import pandas as pd

    rows = [
        {
            "sentence": number,
            "position": position,
            "token": visible(token),
            "site": site,
            "path": routes.paths[choice],
            f"probability_{routes.paths[-1]}": probability,
        }
        for number, (tokens, choices, probabilities) in enumerate(routes.sentences)
        for position, token in enumerate(tokens)
        for site, choice, probability in zip(
            routes.sites, choices[position], probabilities[position], strict=True
        )
    ]
    return pd.DataFrame(rows)


def draw_tokens(routes: TokenRoutes) -> tuple[Figure, int]:
    """Token × site maps, and how many sentences are drawn: at most 12, of each at most 26 tokens.

    The colour is the path taken; it is the paler the nearer the router's probability is to a draw.
    """
    shown = routes.sentences[:SENTENCES_SHOWN]
    columns = min(4, len(shown))
    lines = [shown[place : place + columns] for place in range(0, len(shown), columns)]
    tallest = [max(min(len(sentence[0]), TOKENS_SHOWN) for sentence in line) for line in lines]
    names = [site.replace("layer", "L").replace(".mixer", "").replace(".block", "") for site in routes.sites]
    upright = 3 < len(names) <= MOST_NAMED_SITES
    width = WIDTH if columns > 2 else 3.6 * columns
    head = 0.7 if upright else 0.4
    figure = new_figure(0.7 + sum(head + _ROW * rows for rows in tallest), width)
    grid = figure.subplots(
        len(lines),
        columns,
        squeeze=False,
        gridspec_kw={"height_ratios": [rows + head / _ROW for rows in tallest]},
    )
    for place, axes in enumerate(grid.ravel()):
        if place < len(shown):
            image = _sentence(axes, shown[place], tallest[place // columns], names, upright)
            # Narrow cells where sites are few.
            axes.set_box_aspect(
                tallest[place // columns] * _ROW / min(width / columns * 0.5, 0.32 * len(names))
            )
            axes.set_anchor("NE")
        else:
            axes.set_axis_off()
    cheap, expensive = path_name(routes.paths[0]), path_name(routes.paths[-1])
    key = figure.colorbar(
        image, ax=list(grid.ravel()), location="bottom", shrink=1.8 / width, aspect=15, ticks=[-1, 0, 1]
    )
    key.ax.set_xticklabels([f"0: {cheap}", "0.5", f"1: {expensive}"], fontsize=7)
    key.outline.set_visible(False)
    key.set_label(f"router's probability of {expensive}", fontsize=7)
    return figure, len(shown)


def _sentence(axes: Axes, sentence: tuple, rows: int, names: list[str], upright: bool):  # type: ignore[type-arg, no-untyped-def]
    tokens, choice, probability = sentence
    kept = min(len(tokens), TOKENS_SHOWN)
    sure = np.maximum(np.abs(2 * np.array(probability[:kept], dtype=float) - 1), 0.01)
    values = np.full((rows, len(names)), np.nan)
    values[:kept] = np.where(np.array(choice[:kept]) > 0, sure, -sure)
    image = axes.imshow(values, cmap=_COLOURS, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(kept), [token_label(token) for token in tokens[:kept]], fontsize=6.6)
    places, labels, edges = _columns(names)
    axes.set_xticks(places, labels, fontsize=6.6, rotation=90 if upright else 0)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False, pad=2)
    axes.grid(False)
    # Lines and not a grid on minor ticks: each tick is five artists, and there are hundreds.
    between: dict[str, Any] = {"color": PAPER, "linewidth": 0.8}
    axes.hlines(np.arange(-0.5, kept), 0, 1, transform=axes.get_yaxis_transform(), **between)
    axes.vlines(edges, 0, 1, transform=axes.get_xaxis_transform(), **between)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(tokens) > kept:
        axes.set_xlabel(f"… {len(tokens) - kept} more", fontsize=6.6, color=MUTED, loc="right", labelpad=2)
    return image


def _columns(names: list[str], width: float = 0.9) -> tuple[list[float], list[str], list[float]]:
    """Where columns are named, the names, and where layers part.

    Each of a few sites has its name, or else the middle of each layer's, as many as ``width`` inches hold.
    """
    if len(names) <= MOST_NAMED_SITES:
        places = [float(index) for index in range(len(names))]
        return places, names, [place - 0.5 for place in places]
    layers = [name.partition(".")[0] for name in names]
    unique = list(dict.fromkeys(layers))
    middles = [float(np.mean([i for i, layer in enumerate(layers) if layer == name])) for name in unique]
    step = -(-len(unique) // max(1, int(width / (0.075 * max(map(len, unique))))))
    edges = [index - 0.5 for index in range(1, len(layers)) if layers[index] != layers[index - 1]]
    return middles[::step], unique[::step], edges


def visible(token: str) -> str:
    """A token as one line of drawable text: white space and what the font lacks are shown as signs and code points."""
    shown = []
    for character in token:
        if character == " ":
            shown.append("·")
        elif character in "\n\r":
            shown.append("⏎")
        elif character == "\t":
            shown.append("⇥")
        elif unicodedata.category(character)[0] in "CZ" or ord(character) not in _glyphs():
            shown.append(f"\\u{ord(character):04x}")
        else:
            shown.append(character)
    return "".join(shown)


def token_label(token: str, length: int = 15) -> str:
    """A token as the label of a row: drawable, and cut to ``length``; a long indentation as its number of spaces."""
    text = visible(token)
    return f"·×{len(text)}" if len(text) > length and set(text) == {"·"} else clip(text, length)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap())
