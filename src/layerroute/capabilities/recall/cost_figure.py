"""The figure of recall against what it costs: FLOPs, and bytes of caches that a token reads."""

from collections.abc import Sequence

import pandas as pd

from layerroute.capabilities.recall.measures import recall_by_seed
from layerroute.lab.arms import Arm
from layerroute.lab.fairness import cache_bytes
from layerroute.lab.report.figures import Drawn, View
from layerroute.lab.report.plots import draw_points, new_figure
from layerroute.lab.report.style import MUTED
from layerroute.lab.statistics import t_interval

AXES = (
    ("flops", 1e3, "FLOPs/token (thousands)"),
    ("bytes", 1e3, "bytes read/token (thousands)"),
)


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
    means = []
    for arm, rows in data.groupby("arm", sort=False):
        found = t_interval(list(100 * rows["accuracy"]))
        assert found is not None
        half = float("nan") if found.half_width is None else found.half_width
        # Shares end at 0 and 100 %, whatever a t interval says.
        low, high = max(0.0, found.mean - half), min(100.0, found.mean + half)
        means.append((arm, found.mean, low, high, *rows[["flops", "bytes"]].iloc[0]))
    shown = pd.DataFrame(means, columns=["arm", "y", "low", "high", "flops", "bytes"])
    figure = new_figure(max(3.3, 0.6 + 0.19 * len(shown)))
    chance = next(
        run.value("recall", "chance") for arm in view.arms for run in arm.completed if run.value("recall")
    )
    both = figure.subplots(1, 2, sharey=True)
    for axes, (key, scale, label) in zip(both, AXES, strict=True):
        seeds = data.assign(x=data[key] / scale, y=100 * data["accuracy"])
        draw_points(axes, shown.assign(x=shown[key] / scale), view.styles, seeds=seeds)
        axes.axhline(100 * float(chance), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_xlabel(label)
        axes.set_ylim(-4.0, 104.0)
        axes.margins(x=0.12)
    both[0].set_ylabel("answers recalled (%)")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", handlelength=1.2)
    caption = (
        "Share of answers recalled at the length of training against both costs of a token: the forward FLOPs that "
        "PyTorch counted in inference, and the bytes of keys, values and states that decoding reads. Small points are "
        "seeds, large ones means with 95% t intervals, cut at 0 and 100%; the dotted line is blind guessing."
    )
    return figure, data, caption
