"""Figures about layer skipping: loss against compute, where tokens skip, how the loss went."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from layerroute.analysis.arms import Arm
from layerroute.analysis.pareto import pareto_front
from layerroute.analysis.skipping import FULL, ROUTED, SkippingComparison, executed, kind_of, skipped
from layerroute.analysis.tokens import token_groups
from layerroute.report.figures_common import (
    annealing_data,
    annealing_figure,
    bars_data,
    bars_figure,
    kinds_data,
    kinds_figure,
)
from layerroute.report.figures_speed import draw_speed, speed_data
from layerroute.report.figures_tokens import heatmap_data, heatmap_figure
from layerroute.report.style import (
    FORMATS,
    GDN,
    MUTED,
    SOFTMAX,
    WIDTH,
    LineStyle,
    figure_style,
    new_figure,
    save_figure,
)

MARKERS = {
    FULL: ("s", GDN),
    ROUTED: ("o", SOFTMAX),
    "static prune": ("^", "#2a9d8f"),
    "early exit": ("D", "#8a63b3"),
    "random": ("x", "#c2447f"),
    "periodic": ("+", "#7a8a1f"),
    "stochastic depth": ("v", "#8c5a3c"),
}
FIGURES = (
    "compute",
    "bars",
    "speed",
    "layers",
    "heatmap",
    "kinds",
    "convergence",
    "validation",
    "terms",
    "annealing",
)
FILES = tuple(f"{name}.{suffix}" for name in FIGURES for suffix in ("csv", *FORMATS))
"""All that ``build_skipping_figures`` may write."""

TERMS = {
    "lm_loss": "cross-entropy",
    "kd_loss": "distillation (T²·KL)",
    "activity": "share that runs",
    "budget_loss": "budget",
    "policy_loss": "policy gradient",
}


@dataclass(frozen=True, kw_only=True)
class SkippingFigure:
    """A figure of the page; ``absent`` says why there is none."""

    name: str
    title: str
    caption: str = ""
    absent: str = ""
    svg: Markup | None = None


def build_skipping_figures(
    comparison: SkippingComparison,
    folder: Path,
    progress: Callable[[str], None],
    bench: Sequence[Mapping[str, Any]] = (),
) -> dict[str, SkippingFigure]:
    """Draw all figures into ``folder`` with their data as CSV beside them."""
    made = {}
    speed = partial(_speed, bench)
    makers: tuple[Callable[[SkippingComparison], Drawn], ...] = (
        _compute,
        _bars,
        speed,
        _layers,
        _heatmap,
        _kinds,
        _convergence,
        _validation,
        _terms,
        _annealing,
    )
    for name, draw in zip(FIGURES, makers, strict=True):
        progress(f"figure {name}")
        with figure_style():
            entry, figure, data = draw(comparison)
            if figure is not None:
                save_figure(figure, folder, entry.name)
                data.to_csv(folder / f"{entry.name}.csv", index=False, lineterminator="\n")
        made[name] = entry
    return made


Drawn = tuple[SkippingFigure, Figure | None, pd.DataFrame]


def _absent(name: str, title: str, why: str) -> Drawn:
    return SkippingFigure(name=name, title=title, absent=why), None, pd.DataFrame()


def _compute(comparison: SkippingComparison) -> Drawn:
    name, title = "compute", "Validation loss against executed compute"
    rows = []
    for arm in comparison.arms:
        estimate, cost = arm.estimate("metrics", "validation_loss"), executed(arm)
        if estimate is not None and cost is not None:
            rows.append(
                {
                    "arm": arm.label,
                    "kind": kind_of(arm),
                    "skipped": skipped(arm),
                    "executed": cost,
                    "loss": estimate.mean,
                    "half_width": estimate.half_width,
                }
            )
    if not rows:
        return _absent(name, title, "no completed run has both.")
    frame = pd.DataFrame(rows)
    points = {str(row.arm): (float(row.executed), float(row.loss)) for row in frame.itertuples()}
    front = set(pareto_front(points))
    frame["on_front"] = frame["arm"].isin(front)
    figure = new_figure(WIDTH, 3.6)
    axes = figure.add_axes((0.09, 0.14, 0.64, 0.8))
    for kind, group in frame.groupby("kind", sort=False):
        marker, colour = MARKERS.get(str(kind), ("o", MUTED))
        ordered = group.sort_values("executed")
        half = ordered["half_width"].astype(float)
        if len(ordered) > 1 and kind in (ROUTED, "random", "periodic"):
            axes.plot(100 * ordered["executed"], ordered["loss"], color=colour, alpha=0.35, linewidth=1.0)
        axes.errorbar(
            100 * ordered["executed"],
            ordered["loss"],
            yerr=None if half.isna().all() else half.fillna(0.0),
            fmt=marker,
            color=colour,
            markersize=6,
            capsize=2.5,
            label=str(kind),
        )
    for _, row in frame.iterrows():
        axes.annotate(
            str(row["arm"]),
            (100 * row["executed"], row["loss"]),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=6.5,
            color=MUTED,
        )
    if len(front) > 1:
        best = frame[frame["on_front"]].sort_values("executed")
        axes.step(
            100 * best["executed"],
            best["loss"],
            where="post",
            color=MUTED,
            linewidth=0.9,
            linestyle=(0, (4, 2)),
        )
    axes.set_xlabel("FLOPs executed per token, % of the plain model (fewer is better)")
    axes.set_ylabel("validation cross-entropy, nats")
    axes.margins(x=0.12, y=0.12)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    caption = (
        "Each point is an arm; down and to the left is better. Bars are 95% intervals over seeds, where there are two "
        "or more. The broken line is the Pareto front of the means: no other arm has both a lower loss and fewer FLOPs."
    )
    return SkippingFigure(name=name, title=title, caption=caption), figure, frame


def _colours(comparison: SkippingComparison) -> dict[str, str]:
    return {
        arm.label: SOFTMAX if arm is comparison.subject else MARKERS.get(kind_of(arm), ("", MUTED))[1]
        for arm in comparison.arms
    }


def _styles(comparison: SkippingComparison) -> dict[str, LineStyle]:
    kinds = {arm.label: kind_of(arm) for arm in comparison.arms}
    return {
        label: LineStyle(color=colour, dashes="-" if kinds[label] in (ROUTED, FULL) else "--")
        for label, colour in _colours(comparison).items()
    }


def _bars(comparison: SkippingComparison) -> Drawn:
    name, title = "bars", "Final validation loss by arm"
    frame = bars_data(comparison.arms)
    if len(frame) < 2:
        return _absent(name, title, "it takes two arms with a completed run.")
    caption = (
        "Mean over seeds with the 95% t interval (none with one seed). The axis does not begin at 0, and arms skip "
        "different shares of compute: the figure before this one has both."
    )
    return (
        SkippingFigure(name=name, title=title, caption=caption),
        bars_figure(frame, _colours(comparison)),
        frame,
    )


def _speed(bench: Sequence[Mapping[str, Any]], _: SkippingComparison) -> Drawn:
    name, title = "speed", "Speed-up of inference against the share that is skipped"
    if not bench:
        return _absent(name, title, "no benchmark record was given (layerroute report DIR --bench RECORD).")
    caption = (
        "Measured in pairs by `layerroute bench`, medians and quartiles; dotted what a model with those layers removed "
        "reaches. Not of the runs above: of their shapes."
    )
    return SkippingFigure(name=name, title=title, caption=caption), draw_speed(bench), speed_data(bench)


def _heatmap(comparison: SkippingComparison) -> Drawn:
    name, title = "heatmap", "Where single tokens run and skip"
    routes = None if comparison.subject is None else comparison.subject.example.token_routes
    if comparison.subject is None or routes is None or not routes.sentences:
        return _absent(name, title, "the routed arm has stored no decisions of single tokens.")
    caption = (
        f"{comparison.subject.label}, seed {comparison.subject.example.seed}: rows are tokens, columns sites; orange "
        "runs, blue skips, the paler, the nearer the router's probability is to 0.5. All sentences are in the data."
    )
    figure = SkippingFigure(name=name, title=title, caption=caption)
    return figure, heatmap_figure(routes), heatmap_data(routes)


def _kinds(comparison: SkippingComparison) -> Drawn:
    name, title = "kinds", "Compute by kind of token"
    routes = None if comparison.subject is None else comparison.subject.example.token_routes
    groups = {} if routes is None else token_groups(routes)
    if not groups or routes is None or comparison.subject is None:
        return _absent(name, title, "the routed arm has stored no decisions of single tokens.")
    frame = kinds_data(groups)
    caption = (
        f"Share of decisions to run, {comparison.subject.label}, seed {comparison.subject.example.seed}, with 95% "
        "bootstrap intervals over sentences; in brackets the number of tokens. Tests are in the table of token kinds."
    )
    return (
        SkippingFigure(name=name, title=title, caption=caption),
        kinds_figure(frame, routes.paths[-1]),
        frame,
    )


def _validation(comparison: SkippingComparison) -> Drawn:
    name, title = "validation", "Validation loss while training"
    curves = {arm.label: _mean_curve(arm, "validation", "loss") for arm in comparison.arms if arm.completed}
    curves = {label: curve for label, curve in curves.items() if len(curve) > 1}
    if not curves:
        return _absent(name, title, "no run was evaluated while it trained (train.evaluate_every is 0).")
    figure = new_figure(WIDTH, 3.0)
    axes = figure.add_axes((0.09, 0.15, 0.64, 0.8))
    for label, curve in curves.items():
        axes.plot(
            curve.index, curve, label=label, marker="o", markersize=2.5, **_styles(comparison)[label].line()
        )
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    rows = [
        {"arm": label, "step": int(step), "validation_loss": value}
        for label, curve in curves.items()
        for step, value in curve.items()
    ]
    caption = "Arms head to head on the same windows, routed as served; mean over seeds."
    return SkippingFigure(name=name, title=title, caption=caption), figure, pd.DataFrame(rows)


def _annealing(comparison: SkippingComparison) -> Drawn:
    name, title = "annealing", "Temperature and share that runs, while training"
    frame = annealing_data(comparison.arms)
    if frame.empty:
        return _absent(name, title, "no learned router left such a curve.")
    caption = "Temperature of the router's softmax in training, and the share of training tokens that ran (all sites)."
    entry = SkippingFigure(name=name, title=title, caption=caption)
    return entry, annealing_figure(frame, _styles(comparison)), frame


def _layers(comparison: SkippingComparison) -> Drawn:
    name, title = "layers", "Share of tokens that skip, by site"
    shown = [
        arm
        for arm in comparison.arms
        if arm.completed and arm.sites and kind_of(arm) in (ROUTED, "static prune", "early exit")
    ]
    if not shown:
        return _absent(name, title, "no completed run routes.")
    rows = [
        {"arm": arm.label, "site": site, "skip": 1 - rate}
        for arm in shown
        for site in arm.sites
        if (rate := arm.mean("routing", "rate", site)) is not None
    ]
    frame = pd.DataFrame(rows)
    sites = list(dict.fromkeys(frame["site"]))
    figure = new_figure(WIDTH, 0.5 + 0.62 * len(shown) + 0.5)
    grid = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.09,
        right=0.98,
        top=1 - 0.25 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(),
        hspace=0.45,
    )
    for axes, arm in zip(grid[:, 0], shown, strict=True):
        own = frame[frame["arm"] == arm.label].set_index("site")["skip"].reindex(sites)
        axes.bar(range(len(sites)), 100 * own, color=SOFTMAX if arm is comparison.subject else GDN, width=0.8)
        axes.set_ylim(0, 100)
        axes.set_title(arm.label, pad=2)
    last = grid[-1, 0]
    last.set_xticks(range(len(sites)), [site.removeprefix("layer").removesuffix(".block") for site in sites])
    last.tick_params(axis="x", labelsize=6.5)
    last.set_xlabel("layer")
    grid[len(shown) // 2, 0].set_ylabel("% of tokens that skip")
    return (
        SkippingFigure(
            name=name, title=title, caption="From hard decisions in inference mode on the validation text."
        ),
        figure,
        frame,
    )


def _mean_curve(arm: Arm, split: str, key: str) -> pd.Series:
    curves = [curve for run in arm.completed if not (curve := run.curve(split, key)).empty]
    return pd.concat(curves, axis=1).mean(axis=1) if curves else pd.Series(dtype=float)


def _convergence(comparison: SkippingComparison) -> Drawn:
    name, title = "convergence", "Training cross-entropy by arm"
    curves = {arm.label: _mean_curve(arm, "train", "lm_loss") for arm in comparison.arms if arm.completed}
    curves = {label: curve for label, curve in curves.items() if len(curve) > 1}
    if not curves:
        return _absent(name, title, "no run left a curve.")
    figure = new_figure(WIDTH, 3.0)
    axes = figure.add_axes((0.09, 0.15, 0.64, 0.8))
    by_label = {arm.label: arm for arm in comparison.arms}
    for label, curve in curves.items():
        kind = kind_of(by_label[label])
        colour = SOFTMAX if by_label[label] is comparison.subject else MARKERS.get(kind, ("", MUTED))[1]
        dashes = "-" if kind in (ROUTED, FULL) else "--"
        axes.plot(curve.index, curve, label=label, color=colour, linestyle=dashes)
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    rows = [
        {"arm": label, "step": int(step), "lm_loss": value}
        for label, curve in curves.items()
        for step, value in curve.items()
    ]
    caption = "Cross-entropy alone, without the other terms of the training loss; mean over seeds."
    return SkippingFigure(name=name, title=title, caption=caption), figure, pd.DataFrame(rows)


def _terms(comparison: SkippingComparison) -> Drawn:
    name, title = "terms", "Terms of the training loss"
    arm = comparison.subject
    curves = {} if arm is None else {key: _mean_curve(arm, "train", key) for key in TERMS}
    curves = {key: curve for key, curve in curves.items() if len(curve) > 1}
    if arm is None or not curves:
        return _absent(name, title, "the routed arm left no curve.")
    figure = new_figure(WIDTH, 2.2)
    grid = figure.subplots(1, len(curves), squeeze=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.88, bottom=0.2, wspace=0.35)
    for axes, (key, curve) in zip(grid[0], curves.items(), strict=True):
        axes.plot(curve.index, curve, color=SOFTMAX)
        axes.set_title(TERMS[key])
        axes.set_xlabel("step")
    rows = [
        {"term": key, "step": int(step), "value": value}
        for key, curve in curves.items()
        for step, value in curve.items()
    ]
    return (
        SkippingFigure(name=name, title=title, caption=f"Of {arm.label}, unweighted, each on its own scale."),
        figure,
        pd.DataFrame(rows),
    )
