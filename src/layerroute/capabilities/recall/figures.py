"""The figures of recall: against rate and length, and against what it costs in FLOPs and in bytes read."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from layerroute.capabilities.recall.measures import recall_by_seed, softmax_rate
from layerroute.lab.arms import Arm
from layerroute.lab.fairness import cache_bytes
from layerroute.lab.report.figures import Drawn, View
from layerroute.lab.report.plots import Panel, curves, draw_points
from layerroute.lab.report.style import MUTED, LineStyle, new_figure
from layerroute.lab.statistics import t_interval

RECALLED, ENDS = "answers recalled (%)", (-4.0, 104.0)
NEAR = 0.05
"""The least part of a cost that a panel spans to each side."""
COSTS = {"flops": "FLOPs/token (thousands)", "bytes": "bytes read/token (thousands)"}


def recall_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Recall of every completed run at every length it was measured at; empty where no run has recall data."""
    rows = [
        (
            arm.label, run.seed, int(point["multiple"]), int(point["length"]),
            softmax_rate(arm, point.get("mean_rate")), float(point["accuracy"]), run.value("recall", "chance"),
        )
        for arm in arms
        for run in arm.completed
        for point in run.value("recall", "by_length") or ()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "seed", "multiple", "length", "rate", "accuracy", "chance"])


def draw_recall(view: View) -> Drawn | str:
    """Left: recall against the rate of softmax, at the length of training. Right: against length."""
    data = recall_data(view.arms)
    if data.empty:
        return "no completed run was trained on recall data."
    shown = data.assign(y=100 * data["accuracy"], line=data["arm"], panel="length", x=data["multiple"])
    panels = (
        Panel(
            name="rate", ylabel=RECALLED, xlabel="tokens with softmax after the first layer (%)", ylim=ENDS,
            after=lambda axes, _: _recall_points(axes, shown, view.styles),
        ),
        Panel(name="length", ylabel=RECALLED, xlabel="length, relative to training", ylim=ENDS, log2=True, dots=True),
    )  # fmt: skip
    means = shown.groupby(["panel", "line", "x"], sort=False)["y"].mean().reset_index()
    figure = curves(means, panels, view.styles, tall=3.0)
    example = next(run for arm in view.arms for run in arm.completed if run.value("recall"))
    caption = (
        f"{example.value('recall', 'task')} with {example.value('recall', 'pairs')} pairs. Left: share of answers "
        "recalled at the length of training against the share of tokens with softmax attention, averaged over the "
        "layers after the first; small points are seeds, large ones means with 95% t intervals, cut at 0 and 100%; "
        "arms of nearly one rate stand side by side (the data have their rates); the dotted line is blind guessing. "
        "Right: means against length, with as many pairs and more between them."
    )
    return figure, data, caption


def _recall_points(axes: Axes, data: pd.DataFrame, styles: Mapping[str, LineStyle]) -> None:
    here = data[(data["multiple"] == 1) & data["rate"].notna()]
    rates = {str(arm): 100 * float(rows["rate"].mean()) for arm, rows in here.groupby("arm", sort=False)}
    places = _side_by_side(rates)
    means = _means(here)
    draw_points(
        axes,
        means.assign(x=means["arm"].map(places)),
        styles,
        seeds=here.assign(x=here["arm"].map(places)),
    )
    _blind(axes, float(data["chance"].iloc[0]))
    axes.set_xlim(-6, 106)


def _means(data: pd.DataFrame) -> pd.DataFrame:
    """Mean recall of each arm in percent, with its t interval over seeds, as `draw_points` takes them."""
    rows = []
    for arm, own in data.groupby("arm", sort=False):
        found = t_interval(list(100 * own["accuracy"]))
        assert found is not None
        half = float("nan") if found.half_width is None else found.half_width
        # Shares end at 0 and 100 %, whatever a t interval says; one seed has none, and NaN stays NaN.
        low, high = np.clip([found.mean - half, found.mean + half], 0.0, 100.0)
        rows.append((arm, found.mean, low, high))
    return pd.DataFrame(rows, columns=["arm", "y", "low", "high"])


def _blind(axes: Axes, chance: float) -> None:
    """The line of blind guessing."""
    axes.axhline(100 * chance, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))


def _side_by_side(rates: Mapping[str, float], near: float = 2.0, apart: float = 2.2) -> dict[str, float]:
    """Where to draw each arm, in points of the rate, so that arms of nearly one rate stand side by side."""
    places: dict[str, float] = {}
    group: list[str] = []
    ordered = sorted(rates, key=lambda label: rates[label])
    for label in [*ordered, ""]:
        if group and (not label or rates[label] - rates[group[-1]] > near):
            middle = sum(rates[member] for member in group) / len(group)
            for place, member in enumerate(group):
                places[member] = middle + apart * (place - (len(group) - 1) / 2)
            group = []
        group.append(label)
    return places


def recall_cost_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Recall of every completed run at the length of training, with its arm's mean costs; arms that have both."""
    rows = [
        (arm.label, seed, recalled, arm.executed, cache_bytes(arm))
        for arm in arms
        if arm.executed and cache_bytes(arm)
        for seed, recalled in recall_by_seed(arm).items()
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "accuracy", "flops", "bytes"])


def draw_recall_cost(view: View) -> Drawn | str:
    """Left: recall against executed FLOPs. Right: against bytes read."""
    data = recall_cost_data(view.arms)
    if data["arm"].nunique() < 2:
        return "it takes two arms whose records have recall, executed FLOPs and bytes of caches read."
    costs = data.groupby("arm", sort=False)[list(COSTS)].first()
    shown = _means(data).join(costs, on="arm")
    figure = new_figure(max(3.3, 0.6 + 0.19 * len(shown)))
    chance = next(
        run.value("recall", "chance") for arm in view.arms for run in arm.completed if run.value("recall")
    )
    both = figure.subplots(1, 2, sharey=True)
    for axes, (key, label) in zip(both, COSTS.items(), strict=True):
        seeds = data.assign(x=data[key] / 1e3, y=100 * data["accuracy"])
        draw_points(axes, shown.assign(x=shown[key] / 1e3), view.styles, seeds=seeds)
        _blind(axes, float(chance))
        axes.set_xlabel(label)
        axes.set_ylim(*ENDS)
        axes.margins(x=0.12)
        # Costs that are held to be equal stand one above the other, and are not spread over the panel.
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, (1 - NEAR) * high), max(high, (1 + NEAR) * low))
    both[0].set_ylabel(RECALLED)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", handlelength=1.2)
    caption = (
        "Share of answers recalled at the length of training against both costs of a token: the forward FLOPs that "
        "PyTorch counted in inference, and the bytes of keys, values and states that decoding reads. Small points are "
        "seeds, large ones means with 95% t intervals, cut at 0 and 100%; the dotted line is blind guessing."
    )
    return figure, data, caption
