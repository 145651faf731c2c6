"""Figures of both reports: final bars, curves, annealing, points by cost, rates by layer and head."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from layerroute.lab.arms import Arm
from layerroute.lab.format import number
from layerroute.lab.report.style import (
    GDN,
    INK,
    MUTED,
    PAPER,
    SOFTMAX,
    WIDTH,
    LineStyle,
    clip,
    legend_below,
    legend_height,
    new_figure,
)

_PALETTE = LinearSegmentedColormap.from_list("rates", [GDN, PAPER, SOFTMAX])


def bars_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Final validation loss of every arm with a completed run: mean over seeds, half width of the 95 % interval."""
    rows = []
    for arm in arms:
        estimate = arm.estimate("metrics", "validation_loss")
        if estimate is not None:
            rows.append(
                {
                    "arm": arm.label,
                    "validation_loss": estimate.mean,
                    "half_width_95": estimate.half_width,
                    "seeds": estimate.n,
                }
            )
    return pd.DataFrame(rows, columns=["arm", "validation_loss", "half_width_95", "seeds"])


def bars_figure(data: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """A bar an arm with its value; single seeds without an interval. See `bars_start` for where they begin."""
    height = 0.75 + 0.27 * len(data)
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.27, 0.5 / height, 0.63, 1 - 0.6 / height))
    places = range(len(data))
    half = data["half_width_95"].astype(float)
    axes.barh(
        list(places),
        data["validation_loss"],
        height=0.66,
        color=[colours.get(str(arm), MUTED) for arm in data["arm"]],
    )
    several = half.notna()
    axes.errorbar(
        data["validation_loss"][several],
        [place for place, has in zip(places, several, strict=True) if has],
        xerr=half[several],
        fmt="none",
        ecolor=INK,
        elinewidth=1.0,
        capsize=2.5,
    )
    axes.set_yticks(list(places), [_two_lines(str(arm)) for arm in data["arm"]])
    axes.invert_yaxis()
    high = float((data["validation_loss"] + half.fillna(0.0)).max())
    low = bars_start(data)
    axes.set_xlim(low, high + 0.08 * ((high - low) or 1.0))
    axes.grid(False, axis="y")
    axes.set_xlabel("final validation loss (nats / token)")
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.set_yticks(list(places), [number(float(loss)) for loss in data["validation_loss"]])
    right.tick_params(length=0)
    right.spines["left"].set_visible(False)
    right.grid(False)
    return figure


def bars_start(data: pd.DataFrame) -> float:
    """Where the bars begin: losses differ in their second digit, and bars from 0 would all look alike."""
    half = data["half_width_95"].astype(float).fillna(0.0)
    low, high = (
        float((data["validation_loss"] - half).min()),
        float((data["validation_loss"] + half).max()),
    )
    return max(0.0, low - 0.25 * (high - low or abs(high) or 1.0))


def bars_note(data: pd.DataFrame) -> str:
    """What the caption says of where the bars begin; empty where it is 0."""
    return (
        " The axis does not begin at 0: read the ends of the bars, not their lengths."
        if bars_start(data)
        else ""
    )


def _two_lines(label: str) -> str:
    lines = textwrap.wrap(label, 29) or [""]
    return "\n".join([lines[0], clip(" ".join(lines[1:]), 29)] if len(lines) > 1 else lines)


def annealing_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Temperature of the router's training-time softmax, and the mean rate asked of or taken in training, by step."""
    parts = []
    for arm in arms:
        for run in arm.completed:
            if run.value("routing", "control") is not None:
                continue
            curves = {"temperature": run.curve("train", "temperature")}
            rates = [curve for site in arm.sites if not (curve := run.curve("train", f"rate/{site}")).empty]
            if rates:
                curves["mean rate in training"] = pd.concat(rates, axis=1).mean(axis=1)
            for name, curve in curves.items():
                if len(curve) > 1:
                    parts.append(
                        pd.DataFrame(
                            {
                                "arm": arm.label,
                                "seed": run.seed,
                                "what": name,
                                "step": curve.index,
                                "value": curve.to_numpy(),
                            }
                        )
                    )
    columns = ["arm", "seed", "what", "step", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def annealing_figure(data: pd.DataFrame, styles: Mapping[str, LineStyle], which: str) -> Figure:
    """Left the temperature, right the rate, each against the step; a line is the mean of an arm's seeds.

    ``which`` says which tokens the rate counts, as ``on softmax``. Lines that coincide are drawn one in the other, the
    first the widest.
    """
    names = list(dict.fromkeys(data["what"]))
    arms = [str(arm) for arm in dict.fromkeys(data["arm"])]
    titles = {
        "temperature": ("Temperature", "τ (no unit)", 1.0),
        "mean rate in training": (f"Training tokens {which}", "tokens (%)", 100.0),
    }
    longest = max(min(len(arm), 40) for arm in arms)
    legend = legend_height(len(arms), longest)
    height = 2.65 + legend
    figure = new_figure(WIDTH, height)
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    figure.subplots_adjust(
        left=0.08, right=0.98, top=1 - 0.25 / height, bottom=(0.5 + legend) / height, wspace=0.25
    )
    for axes, name in zip(grid, names, strict=True):
        title, unit, scale = titles[str(name)]
        shown = data[data["what"] == name]
        for arm in arms:
            mean = scale * shown[shown["arm"] == arm].groupby("step")["value"].mean()
            wide = {"linewidth": 1.5 + 1.3 * (len(arms) - 1 - arms.index(arm)) / max(1, len(arms) - 1)}
            axes.plot(mean.index, mean, label=clip(arm, 40), **_style(styles, arm).line() | wide)
        axes.set_title(title)
        axes.set_xlabel("training step")
        axes.set_ylabel(unit)
        axes.set_ylim(0, 103 if scale > 1 else 1.05 * float(shown["value"].max()) or 1.0)
    legend_below(figure, grid[-1], len(arms), longest, height)
    return figure


def curves_figure(
    curves: Mapping[str, pd.Series], styles: Mapping[str, LineStyle], ylabel: str, *, dots: bool = False
) -> Figure:
    """A line an arm against the training step; an arm with a single point is a marker."""
    longest = max(min(len(label), 40) for label in curves)
    legend = legend_height(len(curves), longest)
    height = 3.1 + legend
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.08, (0.5 + legend) / height, 0.9, 1 - (0.65 + legend) / height))
    for label, curve in curves.items():
        style = _style(styles, label)
        points: dict[str, Any] = {}
        if dots or len(curve) == 1:
            points = {"marker": style.marker, "markersize": 3}
        axes.plot(curve.index, curve, label=clip(label, 40), **style.line(), **points)
    axes.set_xlim(left=0)
    axes.set_xlabel("training step")
    axes.set_ylabel(ylabel)
    legend_below(figure, axes, len(curves), longest, height)
    return figure


def draw_points(axes: Axes, means: pd.DataFrame, styles: Mapping[str, LineStyle], by: str = "arm") -> None:
    """Mean losses against their cost with intervals over seeds, ringed where on the Pareto front, and the front.

    Args:
        means: a row an arm: ``cost``, ``loss``, ``half_width`` (NaN with one seed), ``on_front``, and ``by``.
        by: the column whose values share a style and an entry of the legend.
    """
    named: set[str] = set()
    for row in means.to_dict("records"):
        half = row["half_width"]
        # A loss is not negative, whatever a t interval says.
        ends = None if pd.isna(half) else [[min(half, row["loss"])], [half]]
        style = styles[row[by]]
        ring: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.1} if row["on_front"] else {}
        axes.errorbar(
            row["cost"],
            row["loss"],
            yerr=ends,
            color=style.color,
            marker=style.marker,
            markersize=6,
            capsize=3,
            linewidth=1.2,
            linestyle="none",
            label=None if row[by] in named else clip(str(row[by]), 32),
            **ring,
        )
        named.add(row[by])
    front = means[means["on_front"]].sort_values("cost")
    if len(front) > 1:
        axes.step(
            front["cost"],
            front["loss"],
            where="post",
            color=MUTED,
            linewidth=0.9,
            linestyle=(0, (4, 2)),
            zorder=1.5,
        )


def _style(styles: Mapping[str, LineStyle], label: str) -> LineStyle:
    return styles.get(label, LineStyle(color=MUTED, dashes="-"))


def heads_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rate of every layer and head of the arms whose heads choose apart, mean over completed seeds."""
    rows = []
    for arm in arms:
        for site in arm.sites:
            layer, _, head = site.partition(".head")
            rate = arm.mean("routing", "rate", site)
            if head.isdigit() and rate is not None:
                rows.append(
                    {
                        "arm": arm.label,
                        "layer": int(layer.removeprefix("layer")),
                        "head": int(head),
                        "rate": rate,
                    }
                )
    return pd.DataFrame(rows, columns=["arm", "layer", "head", "rate"])


def heads_figure(data: pd.DataFrame, expensive: str) -> Figure:
    """A map an arm: rows are layers, columns heads, the colour and the number the share of tokens on ``expensive``."""
    arms = list(dict.fromkeys(data["arm"]))
    tables = {
        arm: data[data["arm"] == arm].pivot(index="layer", columns="head", values="rate") for arm in arms
    }
    lines = sum(len(table) for table in tables.values())
    height = 0.4 + 0.55 * len(arms) + 0.3 * lines
    figure = new_figure(WIDTH, height)
    ratios = [len(table) for table in tables.values()]
    grid = figure.subplots(len(arms), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    figure.subplots_adjust(left=0.1, right=0.98, top=1 - 0.3 / height, bottom=0.45 / height, hspace=0.9)
    for axes, (arm, table) in zip(grid, tables.items(), strict=True):
        axes.imshow(table.to_numpy(), cmap=_PALETTE, vmin=0, vmax=1, aspect="auto")
        for row in range(table.shape[0]):
            for column in range(table.shape[1]):
                value = float(table.to_numpy()[row, column])
                if table.shape[1] <= 16:
                    axes.text(
                        column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=INK
                    )
        axes.set_yticks(range(len(table)), [f"layer {layer}" for layer in table.index])
        axes.set_xticks(range(table.shape[1]), [str(head) for head in table.columns])
        axes.set_title(f"{clip(arm, 40)}: tokens on {expensive} (%)")
        axes.grid(False)
    grid[-1].set_xlabel("head")
    return figure
