"""Figures 1 and 4: the architecture with its routing path, and two architectures side by side with their FLOPs."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from layerroute.lab.arms import Arm
from layerroute.lab.format import count
from layerroute.lab.report.architecture import COMPLEXITY, describe, flops_by_use
from layerroute.lab.report.diagram import (
    TOP,
    Column,
    draw_key,
    draw_router,
    draw_router_mark,
    draw_stack,
    share_of,
    stack_height,
)
from layerroute.lab.report.style import (
    GDN,
    GREY_PALE,
    SOFTMAX,
    WIDTH,
    blank_axes,
    clip,
    new_figure,
)


def architecture_figure(arm: Arm) -> Figure | None:
    """Figure 1: the layers of ``arm`` from input to output; routed layers with both paths and their shares.

    The thickness of a path's arrows follows its share of the validation tokens. None without a layer pattern.
    """
    architecture = describe(arm)
    if architecture is None:
        return None
    height = stack_height(architecture)
    figure = new_figure(WIDTH, height)
    axes = blank_axes(figure, (0, 0, 1, 1), WIDTH, height)
    column = Column(middle=3.05, spread=0.98, box=1.62, names=0.08)
    if architecture.router is None:
        column = Column(middle=3.6, spread=0.98, box=1.9, names=0.6)
    places = draw_stack(axes, architecture, column, height - TOP)
    if architecture.router is not None:
        draw_router(axes, architecture, column, places)
        draw_key(axes, places[-1][1])
    return figure


def comparison_figure(left: Arm, right: Arm) -> Figure | None:
    """Figure 4: ``left`` and ``right`` side by side on one scale, with the cost of each layer, and total FLOPs below.

    None if either has no layer pattern.
    """
    pair = [describe(left), describe(right)]
    if pair[0] is None or pair[1] is None:
        return None
    architectures = (pair[0], pair[1])
    tallest = max(map(stack_height, architectures))
    totals = [flops_by_use(arm) for arm in (left, right)]
    bars = 0.45 + 0.24 * sum(map(len, totals)) if any(totals) else 0.0
    height = tallest + 0.35 + bars
    figure = new_figure(WIDTH, height)
    axes = blank_axes(figure, (0, 0, 1, 1), WIDTH, height)
    long = max(len(arm.label) for arm in (left, right)) > 34
    for index, (arm, architecture) in enumerate(zip((left, right), architectures, strict=True)):
        middle = 2.02 + 3.6 * index
        axes.text(
            middle + 0.1,
            height - 0.1,
            clip(arm.label, 60 if long else 34),
            ha="center",
            va="top",
            fontsize=6 if long else 10,
            fontweight="bold",
        )
        column = Column(middle=middle + 0.1, spread=0.72, box=1.28, names=middle - 1.94, small=True)
        gap = (tallest - stack_height(architecture)) / len(architecture.segments)
        places = draw_stack(axes, architecture, column, height - 0.35 - TOP, gap)
        if architecture.router is not None:
            draw_router_mark(axes, architecture, column, places)
    axes.plot([3.62, 3.62], [bars + 0.15, height - 0.15], color=GREY_PALE, linewidth=1.2)
    if bars:
        _flops_bars(
            figure, height, bars, [(arm.label, uses) for arm, uses in zip((left, right), totals, strict=True)]
        )
    return figure


def architecture_data(arms: list[Arm]) -> pd.DataFrame:
    """What figures 1 and 4 show: one row a layer of each arm, with shares and cost by path."""
    rows: list[dict[str, Any]] = []
    for arm in arms:
        architecture = describe(arm)
        for segment in architecture.segments if architecture else ():
            for layer in segment.layers:
                kinds = ("gdn", "softmax") if segment.kind == "routed" else (segment.kind,)
                for path in kinds:
                    share = 1.0 if len(kinds) == 1 else share_of(segment, path)
                    rows.append(
                        {
                            "arm": arm.label,
                            "layer": layer,
                            "kind": segment.kind,
                            "path": path,
                            "complexity": COMPLEXITY.get(path, ""),
                            "share_of_tokens": share,
                            "flops_per_token": segment.flops.get(path),
                        }
                    )
    columns = ["arm", "layer", "kind", "path", "complexity", "share_of_tokens", "flops_per_token"]
    return pd.DataFrame(rows, columns=columns).sort_values(["arm", "layer"], kind="stable", ignore_index=True)


def flops_data(arms: list[Arm]) -> pd.DataFrame:
    """Total forward FLOPs per token as figure 4 shows them."""
    rows = [
        {"arm": arm.label, "use": use, "flops_per_token": value}
        for arm in arms
        for use, value in flops_by_use(arm).items()
    ]
    return pd.DataFrame(rows, columns=["arm", "use", "flops_per_token"])


def _flops_bars(
    figure: Figure, height: float, bars: float, totals: list[tuple[str, dict[str, float]]]
) -> None:
    axes = figure.add_axes((0.36, 0.33 / height, 0.47, (bars - 0.33) / height))
    labels, values, colors = [], [], []
    for index, (label, uses) in enumerate(totals):
        for use, value in uses.items():
            labels.append(f"{clip(label, 38 - len(use))}: {use}")
            values.append(value)
            colors.append((GDN, SOFTMAX)[index])
    positions = range(len(values))
    axes.barh(positions, values, color=colors, height=0.66)
    for position, value in zip(positions, values, strict=True):
        ratio = f" ({value / values[0]:.2f}×)" if position and values[0] else ""
        axes.text(value, position, f" {count(value)}{ratio}", va="center", fontsize=8)
    axes.set_yticks(list(positions), labels, fontsize=7.5)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("forward FLOPs per token, whole model", fontsize=8)
    axes.tick_params(axis="y", length=0)
