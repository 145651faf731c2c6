"""Figure 5: where single tokens went."""

import unicodedata
from functools import lru_cache

import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from layerroute.capabilities.attention.routing import path_name
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
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
from layerroute.lab.runs import Run, TokenRoutes

SENTENCES_SHOWN = 12
TOKENS_SHOWN = 26
MOST_NAMED_SITES = 8


def heatmap_source(comparison: Comparison) -> tuple[Arm, Run] | None:
    """The run whose tokens figure 5 shows: of the arm in question, or else of the first routed arm; lowest seed."""
    arms = sorted(comparison.arms, key=lambda arm: (arm is not comparison.subject, not arm.kind.learned))
    for arm in arms:
        for run in arm.completed:
            if run.token_routes is not None and run.token_routes.sentences and run.token_routes.sites:
                return arm, run
    return None


def heatmap_data(routes: TokenRoutes) -> pd.DataFrame:
    """What figure 5 shows, and what the page shows: one row a token and site, of all sentences."""
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


def heatmap_figure(routes: TokenRoutes) -> Figure:
    """Token × site heatmap: rows are tokens, columns sites; blue is the cheap path, orange the expensive one.

    The colour is the path taken; it is the paler the nearer the router's probability is to a draw. At most 12
    sentences and 26 tokens of each are drawn; the CSV and the page have all.
    """
    shown = routes.sentences[:SENTENCES_SHOWN]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    row_height = 0.148
    tallest = [
        max(min(len(s[0]), TOKENS_SHOWN + 1) for s in shown[r * columns : (r + 1) * columns])
        for r in range(rows)
    ]
    names = [site.replace("layer", "L").replace(".mixer", "").replace(".block", "") for site in routes.sites]
    upright = 3 < len(names) <= MOST_NAMED_SITES
    head, gap, foot = (0.62 if upright else 0.24), 0.26, 0.55
    width = WIDTH if columns > 2 else 3.6 * columns
    height = foot + sum(head + gap + row_height * n for n in tallest)
    figure = new_figure(width, height)
    cell = width / columns
    wide = min(cell * 0.5, 0.32 * len(routes.sites))
    top = height - 0.04
    for index, (tokens, choice, probability) in enumerate(shown):
        row, column = divmod(index, columns)
        if index and column == 0:
            top -= head + gap + row_height * tallest[row - 1]
        kept = min(len(tokens), TOKENS_SHOWN)
        strengths = np.array(
            [_strengths(c, p) for c, p in zip(choice[:kept], probability[:kept], strict=True)]
        )
        left = (cell - wide) / 2 + 0.4 if columns == 1 else column * cell + cell - wide - 0.08
        axes = figure.add_axes(
            (
                left / width,
                (top - head - row_height * kept) / height,
                wide / width,
                row_height * kept / height,
            )
        )
        axes.imshow(strengths, cmap=_COLOURS, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_yticks(range(kept), [token_label(token) for token in tokens[:kept]], fontsize=6.6)
        places, labels = _columns(names, wide)
        axes.set_xticks(places, labels, fontsize=6.6, rotation=90 if upright else 0)
        axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False, pad=2)
        edges = np.arange(-0.5, len(names)) if len(places) == len(names) else _layer_edges(names)
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(np.arange(-0.5, kept), minor=True)
        axes.grid(False)
        axes.grid(True, which="minor", color=PAPER, linewidth=0.8)
        axes.tick_params(which="minor", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(tokens) > kept:
            axes.text(
                1.0,
                -0.06 / (row_height * kept),
                f"… {len(tokens) - kept} more",
                transform=axes.transAxes,
                ha="right",
                va="top",
                fontsize=6.6,
                color=MUTED,
            )
    _heatmap_key(figure, routes, width, height)
    return figure


def _columns(names: list[str], width: float) -> tuple[list[float], list[str]]:
    """Where columns are named: each of a few sites, or the middle of each layer's many, as ``width`` inches hold."""
    if len(names) <= MOST_NAMED_SITES:
        return [float(index) for index in range(len(names))], names
    layers = [name.partition(".")[0] for name in names]
    unique = list(dict.fromkeys(layers))
    middles = [
        float(np.mean([index for index, layer in enumerate(layers) if layer == name])) for name in unique
    ]
    room = max(1, int(width / (0.075 * max(map(len, unique)))))
    step = -(-len(unique) // room)
    return middles[::step], unique[::step]


def _layer_edges(names: list[str]) -> list[float]:
    layers = [name.partition(".")[0] for name in names]
    return [index - 0.5 for index in range(1, len(layers)) if layers[index] != layers[index - 1]]


def _strengths(choice: tuple[int, ...], probability: tuple[float, ...]) -> list[float]:
    # -1 certainly cheap … +1 certainly expensive; a decision near a draw keeps a visible third of its colour.
    return [
        (1 if path else -1) * (0.34 + 0.66 * min(1.0, abs(p - 0.5) * 2))
        for path, p in zip(choice, probability, strict=True)
    ]


_COLOURS = LinearSegmentedColormap.from_list("routes", [GDN, GDN_PALE, PAPER, SOFTMAX_PALE, SOFTMAX])


def _heatmap_key(figure: Figure, routes: TokenRoutes, width: float, height: float) -> None:
    axes = figure.add_axes((0.5 - 0.9 / width, 0.22 / height, 1.8 / width, 0.12 / height))
    ramp = np.linspace(-1, 1, 64)
    axes.imshow([np.sign(ramp) * (0.34 + 0.66 * np.abs(ramp))], cmap=_COLOURS, vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks([])
    axes.set_xticks([-0.5, 31.5, 63.5], ["0", "0.5", "1"], fontsize=7)
    axes.tick_params(length=2)
    axes.grid(False)
    axes.set_frame_on(False)
    cheap, expensive = path_name(routes.paths[0]), path_name(routes.paths[-1])
    axes.text(
        -3, 0, cheap, ha="right", va="center", fontsize=7.5, color=GDN, fontweight="bold", clip_on=False
    )
    axes.text(
        66,
        0,
        expensive,
        ha="left",
        va="center",
        fontsize=7.5,
        color=SOFTMAX,
        fontweight="bold",
        clip_on=False,
    )
    figure.text(
        0.5, 0.42 / height, f"router's probability of {expensive}", ha="center", va="bottom", fontsize=7
    )


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
