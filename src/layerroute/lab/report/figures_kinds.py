"""Figures of both reports about kinds of tokens: their share of the expensive path, over all layers and by layer."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from layerroute.lab.report.style import GDN, INK, PAPER, SOFTMAX, WIDTH, new_figure
from layerroute.lab.tokens import LayerKinds, TokenKinds

_AROUND = LinearSegmentedColormap.from_list("around the mean", [GDN, PAPER, SOFTMAX])
LAYERS_NOTE = (
    "In brackets the number of tokens; a star over a layer: kinds differ there (p < 0.05, permutation within "
    "sentences, corrected for the number of layers). Places in the context are not tested. The data have the shares "
    "and their intervals."
)
_SHOWN = 0.05  # p below which a layer is marked


def kinds_data(groups: Mapping[str, TokenKinds]) -> pd.DataFrame:
    """Share of decisions for the expensive path by cut and kind of token, with bootstrap intervals."""
    rows = [
        {
            "by": cut,
            "kind": kind.kind,
            "tokens": kind.tokens,
            "rate": kind.rate,
            "low_95": kind.low,
            "high_95": kind.high,
            "p_value": group.p_value,
        }
        for cut, group in groups.items()
        for kind in group.kinds
    ]
    return pd.DataFrame(
        rows, columns=["by", "kind", "tokens", "rate", "low_95", "high_95", "p_value"], dtype=object
    )


def kinds_figure(data: pd.DataFrame, expensive: str) -> Figure:
    """A panel for each cut, a bar of one thickness for each kind of token."""
    cuts = list(dict.fromkeys(data["by"]))
    sizes = [int((data["by"] == cut).sum()) for cut in cuts]
    columns = min(2, len(cuts))
    heights = [max(sizes[place : place + columns]) for place in range(0, len(cuts), columns)]
    bar, gap = 0.25, 0.74
    height = 0.3 + sum(bar * size + gap for size in heights)
    figure = new_figure(WIDTH, height)
    names, part = 1.55, WIDTH / columns  # inches: what the names of kinds take of a panel's width
    top = height - 0.28
    for line, most in enumerate(heights):
        for column, cut in enumerate(cuts[line * columns : (line + 1) * columns]):
            size = sizes[line * columns + column]
            left, wide = column * part + names, part - names - 0.2
            axes = figure.add_axes(
                (left / WIDTH, (top - bar * size) / height, wide / WIDTH, bar * size / height)
            )
            _kinds_panel(axes, data[data["by"] == cut], f"By {cut}")
            axes.set_xlabel(f"decisions for {expensive} (%)")
        top -= bar * most + gap
    return figure


def _kinds_panel(axes: Axes, part: pd.DataFrame, title: str) -> None:
    rate = 100 * part["rate"].astype(float)
    low, high = (100 * part[name].astype(float) for name in ("low_95", "high_95"))
    places = list(range(len(part)))
    axes.barh(places, rate, height=0.66, color=SOFTMAX)
    known = (low.notna() & high.notna()).to_numpy()
    if known.any():
        error = [(rate - low)[known].clip(lower=0), (high - rate)[known].clip(lower=0)]
        at = [place for place, has in zip(places, known, strict=True) if has]
        axes.errorbar(rate[known], at, xerr=error, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2)
    axes.set_yticks(
        places, [f"{kind} ({count})" for kind, count in zip(part["kind"], part["tokens"], strict=True)]
    )
    axes.set_ylim(len(part) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlim(0, 100)
    axes.set_title(title)


def layers_data(found: Mapping[str, LayerKinds]) -> pd.DataFrame:
    """Share of decisions for the expensive path by cut, kind of token and layer, with intervals and each layer's p."""
    rows = [
        {
            "by": cut,
            "kind": kind,
            "tokens": one.tokens[row],
            "layer": layer,
            "rate": one.rate[row, column],
            "low_95": one.low[row, column],
            "high_95": one.high[row, column],
            "layer_p_value": one.p_values[column],
        }
        for cut, one in found.items()
        for row, kind in enumerate(one.kinds)
        for column, layer in enumerate(one.layers)
    ]
    columns = ["by", "kind", "tokens", "layer", "rate", "low_95", "high_95", "layer_p_value"]
    return pd.DataFrame(rows, columns=columns)


def layers_figure(found: Mapping[str, LayerKinds], expensive: str) -> Figure:
    """A map a cut: rows are kinds, columns layers, the colour how far a kind is from the mean of the layer's tokens.

    A star stands over the layers whose test finds that kinds differ.
    """
    row, gap, foot = 0.21, 0.48, 0.5
    height = 0.1 + foot + sum(row * len(one.kinds) + gap for one in found.values())
    figure = new_figure(WIDTH, height)
    away = {cut: 100 * (one.rate - _mean(one)) for cut, one in found.items()}
    most = max(5.0, float(np.ceil(max(np.abs(values).max() for values in away.values()) / 5) * 5))
    top = height - gap + 0.05
    for cut, one in found.items():
        tall = row * len(one.kinds)
        axes = figure.add_axes((0.22, (top - tall) / height, 0.62, tall / height))
        image = axes.imshow(
            away[cut], cmap=_AROUND, vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
        )
        axes.set_yticks(
            range(len(one.kinds)), [f"{k} ({n})" for k, n in zip(one.kinds, one.tokens, strict=True)]
        )
        axes.set_xticks(range(len(one.layers)), [""] * len(one.layers))
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_title(f"By {cut}", pad=12)
        for column, p in enumerate(one.p_values):
            if p is not None and p < _SHOWN:
                axes.text(column, -0.5, "*", ha="center", va="bottom", fontsize=9, color=INK)
        top -= tall + gap
    every = max(1, len(one.layers) // 34 + 1)
    axes.set_xticks(
        range(0, len(one.layers), every),
        [name.removeprefix("layer") for name in one.layers[::every]],
        fontsize=6.5,
    )
    axes.set_xlabel("layer")
    bar = figure.add_axes((0.92, foot / height, 0.014, min(1.6, height - foot - gap) / height))
    figure.colorbar(image, cax=bar)
    bar.set_ylabel(f"{expensive}: points from\nthe layer's mean", fontsize=7)
    bar.yaxis.set_label_position("left")
    return figure


def _mean(one: LayerKinds) -> np.ndarray:
    counts = np.array(one.tokens, dtype=np.float64)
    found: np.ndarray = counts @ one.rate / counts.sum()
    return found
