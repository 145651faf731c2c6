"""Figures 6 and 7: what each arm's loss costs in executed FLOPs, and what it recalls at which rate and length."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerroute.capabilities.recall.measures import softmax_rate
from layerroute.lab.compare import Comparison
from layerroute.lab.report.figures_common import draw_points
from layerroute.lab.report.style import (
    INK,
    MUTED,
    WIDTH,
    LineStyle,
    arm_styles,
    clip,
    columns_for,
    new_figure,
)
from layerroute.lab.statistics import pareto_front, t_interval

_EXECUTED = ("flops", "executed_per_token")


def cost_data(comparison: Comparison) -> pd.DataFrame:
    """Executed forward FLOPs per token and final validation loss of every completed run, and the arms' means.

    ``on_front`` says of an arm that no other arm has both a lower mean loss and fewer mean FLOPs.
    """
    means: dict[str, tuple[float, float]] = {}
    for arm in comparison.arms:
        cost, loss = arm.mean(*_EXECUTED), arm.mean("metrics", "validation_loss")
        if cost is not None and loss is not None:
            means[arm.label] = (cost, loss)
    front = set(pareto_front(means))
    rows = []
    for arm in comparison.arms:
        if arm.label not in means:
            continue
        estimate = arm.estimate("metrics", "validation_loss")
        assert estimate is not None
        costs, losses = arm.by_seed(*_EXECUTED), arm.loss
        for seed in sorted(set(costs) & set(losses)):
            rows.append(
                {
                    "arm": arm.label,
                    "seed": seed,
                    "executed_flops_per_token": costs[seed],
                    "validation_loss": losses[seed],
                    "mean_flops": means[arm.label][0],
                    "mean_loss": means[arm.label][1],
                    "half_width_95": estimate.half_width,
                    "on_front": arm.label in front,
                }
            )
    return pd.DataFrame(rows)


def cost_figure(comparison: Comparison, data: pd.DataFrame) -> Figure:
    """Loss against executed FLOPs: small points are seeds, large ones means with their 95 % intervals."""
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    scale, unit = _unit(float(data["mean_flops"].median()))
    arms = data["arm"].nunique()
    figure = new_figure(WIDTH, max(3.6, 0.5 + 0.19 * arms))
    axes = figure.add_axes((0.09, 0.14, 0.60, 0.80))
    for label, rows in data.groupby("arm", sort=False):
        axes.scatter(
            rows["executed_flops_per_token"] / scale,
            rows["validation_loss"],
            s=7,
            color=styles[str(label)].color,
            alpha=0.6,
            linewidths=0,
        )
    means = data.groupby("arm", sort=False).first().reset_index()
    means = means.assign(
        cost=means["mean_flops"] / scale, loss=means["mean_loss"], half_width=means["half_width_95"]
    )
    draw_points(axes, means, styles)
    axes.set_xlabel(f"executed forward FLOPs per token{unit}")
    axes.set_ylabel("validation loss (nats / token)")
    figure.legend(loc="center left", bbox_to_anchor=(0.70, 0.54), handlelength=1.2)
    return figure


def _unit(value: float) -> tuple[float, str]:
    """What to divide by, and how the axis says so, for numbers of about ``value``."""
    for scale, word in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if value >= scale:
            return scale, f" ({word})"
    return 1.0, ""


def recall_data(comparison: Comparison) -> pd.DataFrame:
    """Recall of every completed run at every length it was measured at; empty where no run has recall data."""
    rows = []
    for arm in comparison.arms:
        for run in arm.completed:
            for point in run.value("recall", "by_length") or ():
                rows.append(
                    {
                        "arm": arm.label,
                        "seed": run.seed,
                        "multiple": int(point["multiple"]),
                        "length": int(point["length"]),
                        "rate": softmax_rate(arm, point.get("mean_rate")),
                        "accuracy": float(point["accuracy"]),
                        "chance": run.value("recall", "chance"),
                    }
                )
    return pd.DataFrame(rows)


def recall_figure(comparison: Comparison, data: pd.DataFrame) -> Figure:
    """Left: recall against the rate of softmax, at the length of training. Right: against length.

    Arms whose rates are within 2 points of each other are drawn side by side: they would hide each other.
    """
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    labels = [str(label) for label in dict.fromkeys(data["arm"])]
    longest = max(min(len(label), 30) for label in labels)
    columns = columns_for(len(labels), longest)
    legend = 0.35 + 0.18 * -(-len(labels) // columns)
    height = 3.2 + legend
    figure = new_figure(WIDTH, height)
    left, right = (
        figure.add_axes((place, (legend + 0.3) / height, 0.40, 2.75 / height)) for place in (0.08, 0.58)
    )
    at_training = data[(data["multiple"] == 1) & data["rate"].notna()]
    rates = {str(label): 100 * float(rows["rate"].mean()) for label, rows in at_training.groupby("arm")}
    beside = _beside(rates)
    handles: list[Any] = []
    for label in labels:
        style, rows = styles[label], data[data["arm"] == label]
        means = rows.groupby("multiple")["accuracy"].mean()
        line = {**style.line(), "marker": style.marker, "markersize": 4}
        handles += right.plot(means.index, 100 * means, **line, label=clip(label, 30))
        if label in rates:
            _recall_point(
                left, 100 * rows.loc[rows["multiple"] == 1, "accuracy"], rates[label] + beside[label], style
            )
    left.axhline(100 * float(data["chance"].iloc[0]), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    left.set_xlim(-6, 106)
    right.set_xscale("log", base=2)
    multiples = sorted(data["multiple"].unique())
    right.set_xticks(multiples, [f"{multiple}×" for multiple in multiples])
    right.minorticks_off()
    for axes, words in (
        (left, "tokens with softmax after the first layer (%)"),
        (right, "length, relative to training"),
    ):
        axes.set_ylim(-4, 104)
        axes.set_xlabel(words, color=INK)
        axes.set_ylabel("answers recalled (%)")
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=columns, handlelength=2.2
    )
    return figure


def _beside(rates: Mapping[str, float], near: float = 2.0, apart: float = 2.2) -> dict[str, float]:
    """How far to move each arm sideways, in points of the rate, so that arms of nearly one rate stand side by side."""
    moved: dict[str, float] = {}
    group: list[str] = []
    ordered = sorted(rates, key=lambda label: rates[label])
    for label in [*ordered, ""]:
        if group and (not label or rates[label] - rates[group[-1]] > near):
            middle = sum(rates[member] for member in group) / len(group)
            for place, member in enumerate(group):
                moved[member] = middle + apart * (place - (len(group) - 1) / 2) - rates[member]
            group = []
        group.append(label)
    return moved


def _recall_point(axes: Axes, recalled: pd.Series, place: float, style: LineStyle) -> None:
    estimate = t_interval([float(value) for value in recalled])
    assert estimate is not None
    axes.scatter([place] * len(recalled), recalled, s=7, color=style.color, alpha=0.6, linewidths=0)
    half = estimate.half_width
    # Shares end at 0 and 100 %, whatever a t interval says.
    ends = (
        None
        if half is None
        else [[max(0.0, min(half, room))] for room in (estimate.mean, 100 - estimate.mean)]
    )
    axes.errorbar(
        place,
        estimate.mean,
        yerr=ends,
        color=style.color,
        marker=style.marker,
        markersize=5,
        capsize=2.5,
        linewidth=1.1,
    )
