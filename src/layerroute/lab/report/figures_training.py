"""Figure 2: loss, accuracy and balance loss while training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from layerroute.capabilities.attention.tables import bigram_losses
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.format import number
from layerroute.lab.report.style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH,
    LineStyle,
    arm_styles,
    clip,
    new_figure,
)

# One panel each: heading, axis label, split, the curve's key or the first that is there of several.
PANELS = (
    ("Training loss", "loss (nats / token)", "train", ("lm_loss", "loss")),
    ("Validation loss", "loss (nats / token)", "validation", ("loss",)),
    ("Validation accuracy", "next tokens right (%)", "validation", ("accuracy",)),
    ("Load balance loss", "Switch loss (no unit)", "train", ("balance_loss",)),
)
_SMOOTHED_FROM = 80
_COLUMNS, _LABEL_ABREAST = 2, 34
_HALO = [withStroke(linewidth=2.2, foreground=PAPER)]
_BIGRAM: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (6, 2, 1, 2))}


def training_data(comparison: Comparison) -> pd.DataFrame:
    """What figure 2 shows: arm, seed, status, panel, step, value; losses in nats, accuracy in percent."""
    parts = []
    for arm in comparison.arms:
        for run in sorted(arm.runs, key=lambda run: run.seed):
            for title, _, split, keys in PANELS:
                curves = [run.curve(split, key) for key in keys]
                curve = next((c for c in curves if not c.empty), pd.Series(dtype=float))
                if title == "Load balance loss" and not arm.kind.learned:
                    continue
                values = 100 * curve if title == "Validation accuracy" else curve
                if not values.empty:
                    parts.append(
                        pd.DataFrame(
                            {
                                "arm": arm.label,
                                "seed": run.seed,
                                "status": run.status,
                                "panel": title,
                                "step": values.index,
                                "value": values.to_numpy(),
                            }
                        )
                    )
    columns = ["arm", "seed", "status", "panel", "step", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def training_figure(comparison: Comparison, data: pd.DataFrame) -> Figure:
    """The 2×2 grid: training loss, validation loss with the best point starred, accuracy, balance loss.

    With several seeds a line is the mean over completed runs and its band the lowest to the highest of them; a run
    that did not complete is a thin line of its own that ends in a cross.
    """
    arms = [arm for arm in comparison.arms if arm.label in set(data["arm"])]
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    abreast = _COLUMNS if max((len(arm.label) for arm in arms), default=0) <= _LABEL_ABREAST else 1
    legend = 0.25 + 0.175 * -(-(len(arms) + len(bigram_losses(comparison.arms))) // abreast)
    height = 5.2 + legend
    figure = new_figure(WIDTH, height)
    grid = figure.add_gridspec(
        2,
        2,
        left=0.08,
        right=0.985,
        top=1 - 0.25 / height,
        bottom=(legend + 0.5) / height,
        hspace=0.4,
        wspace=0.22,
    )
    insets: list[tuple[Axes, pd.DataFrame]] = []
    for index, (title, label, _, _) in enumerate(PANELS):
        axes = figure.add_subplot(grid[index // 2, index % 2])
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.set_xlabel("training step")
        panel = data[data["panel"] == title]
        for arm in arms:
            _draw_arm(
                axes, panel[panel["arm"] == arm.label], styles[arm.label], star=title == "Validation loss"
            )
        if title == "Validation loss":
            _bigram_line(axes, comparison)
            insets.append((axes, panel))
        if title == "Load balance loss":
            _balance_panel(axes, comparison, panel)
        axes.margins(x=0.02)
        axes.set_xlim(left=0)
        if title != "Load balance loss":
            _fit_completed(axes, panel)
    for axes, panel in insets:
        _inset(axes, panel, arms, styles)
    _legend(figure, arms, styles, bigram_losses(comparison.arms), abreast)
    return figure


def _draw_arm(axes: Axes, data: pd.DataFrame, style: LineStyle, *, star: bool, size: int = 11) -> None:
    completed = data[data["status"] == "completed"]
    if not completed.empty:
        table = completed.pivot(index="step", columns="seed", values="value").dropna()
        mean = table.mean(axis=1)
        smooth = mean
        if len(mean) >= _SMOOTHED_FROM:
            smooth = mean.rolling(max(3, len(mean) // 25), center=True, min_periods=1).mean()
            axes.plot(mean.index, mean, color=style.color, linewidth=0.6, alpha=0.3)
        # A single evaluation is a point: a line through it would show nothing.
        alone: dict[str, Any] = (
            {"marker": style.marker, "markersize": 5} if len(mean) == 1 and not star else {}
        )
        axes.plot(smooth.index, smooth, **style.line(), **alone)
        if table.shape[1] > 1:
            axes.fill_between(
                table.index, table.min(axis=1), table.max(axis=1), color=style.color, alpha=0.16, linewidth=0
            )
        if star and not mean.empty:
            best = mean.idxmin()
            axes.plot(
                [best],
                [mean[best]],
                marker="*",
                markersize=size,
                color=style.color,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
                zorder=5,
                linestyle="none",
            )
    for _, run in data[data["status"] != "completed"].groupby("seed"):
        axes.plot(run["step"], run["value"], **style.line() | {"linewidth": 0.8, "alpha": 0.7})
        last = run.iloc[-1]
        axes.plot(
            [last["step"]], [last["value"]], marker="x", markersize=6, color=style.color, linestyle="none"
        )


def _bigram_line(axes: Axes, comparison: Comparison) -> None:
    for loss in bigram_losses(comparison.arms):
        axes.axhline(loss, **_BIGRAM)


def _fit_completed(axes: Axes, data: pd.DataFrame) -> None:
    """Let completed runs set the scale: a run that diverged would press the others into a line."""
    values = data.loc[data["status"] == "completed", "value"]
    if len(values) and values.max() > values.min():
        pad = 0.05 * (values.max() - values.min())
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, values.min() - pad), min(top, values.max() + pad))


def _inset(axes: Axes, data: pd.DataFrame, arms: Sequence[Arm], styles: dict[str, LineStyle]) -> None:
    """The end of the curves, magnified: where arms that differ by hundredths part.

    The axis is made taller where a completed run's curve would go through the corner it takes; it is left out where
    that would flatten the curves too much, or where too few points would be in it.
    """
    completed = data[data["status"] == "completed"]
    last = completed["step"].max() if len(completed) else 0
    late = completed[completed["step"] >= 0.6 * last]
    if len(set(late["step"])) < 3:
        return
    low, high = late["value"].min(), late["value"].max()
    bottom, top = axes.get_ylim()
    # Curves are drawn from point to point: the one before the corner counts too.
    before = completed[completed["step"] <= 0.36 * last]["step"].max()
    entering = completed[completed["step"] >= (before if pd.notna(before) else 0)]["value"].max()
    needed = (entering - bottom) / 0.4
    if high <= low or needed > 1.6 * (top - bottom):
        return
    if needed > top - bottom:
        axes.set_ylim(bottom, bottom + needed)
    # Other lines must not run through the labels of the magnified axes.
    axes.add_patch(
        Rectangle(
            (0.36, 0.41), 0.66, 0.66, transform=axes.transAxes, facecolor=PAPER, zorder=3, clip_on=False
        )
    )
    inset = axes.inset_axes((0.46, 0.5, 0.53, 0.46), zorder=4)
    for arm in arms:
        _draw_arm(inset, completed[completed["arm"] == arm.label], styles[arm.label], star=True, size=7)
    pad = 0.08 * (high - low)
    inset.set_xlim(0.6 * last, 1.02 * last)
    inset.set_ylim(low - pad, high + pad)
    inset.tick_params(labelsize=6.5)
    inset.set_title("last 40% of the run", fontsize=7, fontweight="normal", loc="right", pad=2)


def _balance_panel(axes: Axes, comparison: Comparison, data: pd.DataFrame) -> None:
    if data.empty:
        axes.set_axis_off()
        axes.text(
            0.5,
            0.5,
            "no arm here has a\nload balance loss",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=MUTED,
        )
        return
    static = [arm.label for arm in comparison.arms if not arm.kind.routed]
    if static:
        axes.axhline(0.0, color=MUTED, linewidth=1.4)
        axes.annotate(
            "static arms: 0 (no router)",
            (0.98, 0.0),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=MUTED,
            xytext=(0, 3),
            textcoords="offset points",
            path_effects=_HALO,
        )
    axes.axhline(1.0, color=GRID, linewidth=1.0)
    axes.annotate(
        "1: even, or an undecided router; 2: all on one path",
        (0.98, 1.0),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="top",
        fontsize=7.5,
        color=MUTED,
        xytext=(0, -4),
        textcoords="offset points",
        path_effects=_HALO,
    )
    top = float(np.nanmax(data["value"])) if len(data) else 1.0
    axes.set_ylim(-0.06 if static else min(0.86, float(data["value"].min())), max(1.25, 1.06 * top))


def _legend(
    figure: Figure, arms: Sequence[Arm], styles: dict[str, LineStyle], bigrams: Sequence[float], columns: int
) -> None:
    handles = []
    for arm in arms:
        final = arm.mean("metrics", "validation_loss")
        tail = "not completed" if final is None else f"{number(final)} (n = {len(arm.completed)})"
        handles.append(Line2D([], [], **styles[arm.label].line(), label=f"{clip(arm.label, 72)}  {tail}"))
    handles += [Line2D([], [], **_BIGRAM, label=f"bigram, back-off  {number(loss)}") for loss in bigrams]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        handlelength=3.0,
        columnspacing=1.8,
        labelcolor=INK,
        fontsize=8,
        title="arm, final validation loss, completed seeds",
        title_fontsize=7.5,
    )
