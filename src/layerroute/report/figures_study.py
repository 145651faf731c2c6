"""Figures 6 and 7: what each arm's loss costs in executed FLOPs, and what it recalls at which rate and length."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from layerroute.analysis.comparison import Comparison
from layerroute.analysis.pareto import pareto_front
from layerroute.analysis.recall import softmax_rate
from layerroute.analysis.statistics import t_interval
from layerroute.report.style import INK, MUTED, WIDTH, LineStyle, arm_styles, clip, new_figure

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
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_axes((0.09, 0.14, 0.60, 0.80))
    front = []
    for label, rows in data.groupby("arm", sort=False):
        style, mean = styles[str(label)], rows.iloc[0]
        axes.scatter(
            rows["executed_flops_per_token"] / 1e6, rows["validation_loss"], s=9, color=style.color, alpha=0.6
        )
        width = mean["half_width_95"]
        axes.errorbar(
            mean["mean_flops"] / 1e6,
            mean["mean_loss"],
            yerr=None if pd.isna(width) else width,
            color=style.color,
            marker="D" if mean["on_front"] else "o",
            markersize=6,
            capsize=3,
            linewidth=1.2,
            label=clip(str(label), 32),
        )
        if mean["on_front"]:
            front.append((mean["mean_flops"] / 1e6, mean["mean_loss"]))
    if len(front) > 1:
        axes.step(
            *zip(*sorted(front), strict=True), where="post", color=MUTED, linewidth=0.9, linestyle=(0, (4, 2))
        )
    axes.set_xlabel("executed forward FLOPs per token (millions)")
    axes.set_ylabel("validation loss (nats)")
    figure.legend(loc="center left", bbox_to_anchor=(0.70, 0.54), handlelength=1.2)
    return figure


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
    """Left: recall against the rate of softmax, at the length of training. Right: against length."""
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    figure = new_figure(WIDTH, 3.9)
    left = figure.add_axes((0.08, 0.30, 0.40, 0.64))
    right = figure.add_axes((0.58, 0.30, 0.40, 0.64))
    handles: list[Any] = []
    labels: list[str] = []
    for label, rows in data.groupby("arm", sort=False):
        style = styles[str(label)]
        at_training = rows[rows["multiple"] == 1]
        if not at_training.empty and at_training["rate"].notna().all():
            left.scatter(
                100 * at_training["rate"], 100 * at_training["accuracy"], s=9, color=style.color, alpha=0.6
            )
            handles.append(_mean_point(left, at_training, style))
            labels.append(clip(str(label), 26))
        by_length = rows.groupby("multiple")["accuracy"].mean()
        right.plot(by_length.index, 100 * by_length, marker="o", markersize=3, **style.line())
    left.axhline(100 * float(data["chance"].iloc[0]), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    right.set_xscale("log", base=2)
    multiples = sorted(data["multiple"].unique())
    right.set_xticks(multiples, [f"{multiple}×" for multiple in multiples])
    right.minorticks_off()
    for axes, words in (
        (left, "tokens with softmax after the first layer (%)"),
        (right, "length, relative to training"),
    ):
        axes.set_ylim(-3, 103)
        axes.set_xlabel(words, color=INK)
        axes.set_ylabel("answers recalled (%)")
    figure.legend(handles, labels, loc="lower center", ncols=4, handlelength=1.2, columnspacing=1.2)
    return figure


def _mean_point(axes: Axes, rows: pd.DataFrame, style: LineStyle) -> ErrorbarContainer:
    estimate = t_interval([float(value) for value in rows["accuracy"]])
    assert estimate is not None
    return axes.errorbar(
        100 * float(rows["rate"].mean()),
        100 * estimate.mean,
        yerr=None if estimate.half_width is None else 100 * estimate.half_width,
        color=style.color,
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.2,
    )
