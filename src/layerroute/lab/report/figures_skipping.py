"""Figures about layer skipping: loss against compute, where tokens skip, how the loss went."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison as SkippingComparison
from layerroute.lab.report.figures_common import (
    annealing_data,
    annealing_figure,
    bars_data,
    bars_figure,
    bars_note,
    curves_figure,
    draw_points,
)
from layerroute.lab.report.figures_kinds import (
    LAYERS_NOTE,
    kinds_data,
    kinds_figure,
    layers_data,
    layers_figure,
)
from layerroute.lab.report.figures_speed import draw_speed, speed_data
from layerroute.lab.report.figures_tokens import heatmap_data, heatmap_figure
from layerroute.lab.report.labels import label_points
from layerroute.lab.report.old import kind_of, kinds_by_layer
from layerroute.lab.report.style import (
    FORMATS,
    GDN,
    INK,
    MUTED,
    SHARES,
    SOFTMAX,
    WIDTH,
    LineStyle,
    clip,
    figure_style,
    new_figure,
    save_figure,
    shade,
)
from layerroute.lab.statistics import pareto_front
from layerroute.lab.tokens import token_groups

MARKERS = {
    "full depth": ("s", GDN),
    "routed": ("o", SOFTMAX),
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
    "kinds_by_layer",
    "convergence",
    "validation",
    "terms",
    "annealing",
)
FILES = tuple(f"{name}.{suffix}" for name in FIGURES for suffix in ("csv", *FORMATS))
"""All that ``build_skipping_figures`` may write."""

_DASHES = ((0, (4, 1.6)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
MOST_BAR_ROWS = 6  # arms with bars of their own; beyond, one map for all

TERMS = {  # key of the curve: (panel's title, unit)
    "lm_loss": ("Cross-entropy", "nats / token"),
    "kd_loss": ("Distillation, T²·KL", "nats / token"),
    "activity": ("Gate: mean p(run)", "no unit"),
    "budget_loss": ("Budget", "no unit"),
    "policy_loss": ("Policy gradient", "no unit"),
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
        _kinds_by_layer,
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
        estimate, cost = arm.estimate("metrics", "validation_loss"), arm.executed_share
        if estimate is not None and cost is not None:
            rows.append(
                {
                    "arm": arm.label,
                    "kind": kind_of(arm),
                    "skipped": arm.mean("routing", "skipped"),
                    "executed": cost,
                    "loss": estimate.mean,
                    "half_width": estimate.half_width,
                }
            )
    if not rows:
        return _absent(name, title, "no completed run has both.")
    frame = pd.DataFrame(rows)
    points = {str(row.arm): (float(row.executed), float(row.loss)) for row in frame.itertuples()}
    frame["on_front"] = frame["arm"].isin(pareto_front(points))
    kinds = {
        kind: LineStyle(color=_look(kind)[1], dashes="-", marker=_look(kind)[0]) for kind in frame["kind"]
    }
    figure = new_figure(WIDTH, 4.0)
    axes = figure.add_axes((0.09, 0.13, 0.70, 0.83))
    draw_points(axes, frame.assign(cost=100 * frame["executed"]), kinds, by="kind")
    axes.set_xlabel("FLOPs executed per token, % of the plain model (fewer is better)")
    axes.set_ylabel("validation cross-entropy (nats / token)")
    axes.margins(x=0.12, y=0.12)
    label_points(axes, [(100 * cost, loss) for cost, loss in points.values()], list(points))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.2)
    caption = (
        "Each point is an arm; down and to the left is better. Bars are 95% intervals over seeds, where there are two "
        "or more. Dark rings and the broken line are the Pareto front of the means: no other arm has both a lower loss "
        "and fewer FLOPs."
    )
    return SkippingFigure(name=name, title=title, caption=caption), figure, frame


def _look(kind: str) -> tuple[str, str]:
    """Marker and colour of a kind of arm."""
    return MARKERS.get(kind, ("o", MUTED))


def _styles(comparison: SkippingComparison) -> dict[str, LineStyle]:
    """A hue and a marker a kind of arm, and in it a shade and dashes an arm; solid lines route or run at full depth."""
    styles: dict[str, LineStyle] = {}
    before: Counter[str] = Counter()
    # The arm in question has the pure colour of its kind.
    for arm in sorted(comparison.arms, key=lambda arm: arm is not comparison.subject):
        kind = kind_of(arm)
        marker, colour = _look(kind)
        number = before[kind]
        before[kind] += 1
        dashes: Any = (
            "-" if kind in ("routed", "full depth") and not number else _DASHES[number % len(_DASHES)]
        )
        styles[arm.label] = LineStyle(color=shade(colour, number), dashes=dashes, marker=marker)
    return styles


def _bars(comparison: SkippingComparison) -> Drawn:
    name, title = "bars", "Final validation loss by arm"
    frame = bars_data(comparison.arms)
    if len(frame) < 2:
        return _absent(name, title, "it takes two arms with a completed run.")
    caption = (
        f"Mean over seeds with the 95% t interval (none with one seed).{bars_note(frame)} Arms skip different shares "
        "of compute: the figure of loss against compute has both."
    )
    colours = {label: style.color for label, style in _styles(comparison).items()}
    return SkippingFigure(name=name, title=title, caption=caption), bars_figure(frame, colours), frame


def _speed(bench: Sequence[Mapping[str, Any]], _: SkippingComparison) -> Drawn:
    name, title = "speed", "Speed-up of inference against the share that is skipped"
    if not bench:
        return _absent(name, title, "no benchmark record was given (layerroute report DIR --bench RECORD).")
    caption = (
        "Measured in pairs by `layerroute bench`, medians and quartiles: how many times as fast as the plain model "
        "(dense). Sparse computes only what is not skipped, masked computes all and selects; dotted is what a model "
        "with those layers removed reaches. Not of the runs above: of their shapes."
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


def _kinds_by_layer(comparison: SkippingComparison) -> Drawn:
    name, title = "kinds_by_layer", "Compute by kind of token and layer"
    arm = comparison.subject
    routes = None if arm is None else arm.example.token_routes
    found = {} if routes is None else kinds_by_layer(routes)
    if arm is None or not found:
        return _absent(
            name, title, "the routed arm has stored no decisions of single tokens on two or more layers."
        )
    caption = (
        "How far each kind of token is from the share of tokens that run the layer, in percentage points; "
        f"{arm.label}, seed {arm.example.seed}. {LAYERS_NOTE}"
    )
    return (
        SkippingFigure(name=name, title=title, caption=caption),
        layers_figure(found, "run"),
        layers_data(found),
    )


def _curves(
    comparison: SkippingComparison, title: str, split: str, key: str, unit: str, *, dots: bool = False
) -> tuple[Figure, pd.DataFrame] | None:
    """An arm's mean curve each, and the figure of them; None where no run left a curve."""
    curves = {arm.label: _mean_curve(arm, split, key) for arm in comparison.arms if arm.completed}
    curves = {label: curve for label, curve in curves.items() if len(curve)}
    if not curves:
        return None
    rows = [
        {"arm": label, "step": int(step), title: value}
        for label, curve in curves.items()
        for step, value in curve.items()
    ]
    return curves_figure(curves, _styles(comparison), unit, dots=dots), pd.DataFrame(rows)


def _convergence(comparison: SkippingComparison) -> Drawn:
    name, title = "convergence", "Training cross-entropy by arm"
    found = _curves(comparison, "lm_loss", "train", "lm_loss", "training cross-entropy (nats / token)")
    if found is None:
        return _absent(name, title, "no run left a curve.")
    caption = "Cross-entropy alone, without the other terms of the training loss; mean over seeds."
    return SkippingFigure(name=name, title=title, caption=caption), *found


def _validation(comparison: SkippingComparison) -> Drawn:
    name, title = "validation", "Validation loss while training"
    unit = "validation cross-entropy (nats / token)"
    found = _curves(comparison, "validation_loss", "validation", "loss", unit, dots=True)
    if found is None:
        return _absent(name, title, "no run was evaluated while it trained (train.evaluate_every is 0).")
    caption = "Arms head to head on the same windows, routed as served; mean over seeds."
    return SkippingFigure(name=name, title=title, caption=caption), *found


def _annealing(comparison: SkippingComparison) -> Drawn:
    name, title = "annealing", "Temperature and share that runs, while training"
    frame = annealing_data(comparison.arms)
    if frame.empty:
        return _absent(name, title, "no learned router left such a curve.")
    caption = (
        "Temperature of the router's softmax in training, and the share of training tokens that ran, mean over sites "
        "and seeds. Lines that coincide are drawn one in the other."
    )
    entry = SkippingFigure(name=name, title=title, caption=caption)
    return entry, annealing_figure(frame, _styles(comparison), "that run"), frame


def _layers(comparison: SkippingComparison) -> Drawn:
    name, title = "layers", "Share of tokens that skip, by site"
    shown = [
        arm
        for arm in comparison.arms
        if arm.completed and arm.sites and kind_of(arm) in ("routed", "static prune", "early exit")
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
    table = 100 * frame.pivot(index="arm", columns="site", values="skip").reindex(
        index=[arm.label for arm in shown], columns=sorted(set(frame["site"]), key=_depth)
    )
    colours = {label: style.color for label, style in _styles(comparison).items()}
    figure = _layer_bars(table, colours) if len(table) <= MOST_BAR_ROWS else _layer_map(table)
    caption = (
        "From hard decisions in inference mode on the validation text; tokens that must run count as running."
    )
    return SkippingFigure(name=name, title=title, caption=caption), figure, frame


def _depth(site: str) -> tuple[int, str]:
    layer, _, unit = site.removeprefix("layer").partition(".")
    return int(layer), unit


def _layer_names(sites: Sequence[str]) -> tuple[list[str], str]:
    """What the axis says at each site, and the axis' own name."""
    units = {site.partition(".")[2] for site in sites}
    if len(units) == 1:
        return [site.partition(".")[0].removeprefix("layer") for site in sites], "layer"
    return [site.removeprefix("layer") for site in sites], "layer and unit"


def _layer_bars(table: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    height = 1.0 + 0.62 * len(table)
    figure = new_figure(WIDTH, height)
    grid = figure.subplots(len(table), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.09, right=0.98, top=1 - 0.25 / height, bottom=0.5 / height, hspace=0.45)
    for axes, (arm, row) in zip(grid, table.iterrows(), strict=True):
        axes.bar(range(len(row)), row, color=colours[str(arm)], width=0.8)
        axes.set_ylim(0, 100)
        axes.set_title(str(arm), pad=2)
        axes.grid(False, axis="x")
    names, what = _layer_names(list(table.columns))
    grid[-1].set_xticks(range(len(names)), names, rotation=90 if what != "layer" else 0)
    grid[-1].tick_params(axis="x", labelsize=6.5)
    grid[-1].set_xlim(-0.6, len(names) - 0.4)
    grid[-1].set_xlabel(what)
    figure.supylabel("tokens that skip (%)", x=0.005, fontsize=8.5, color=INK)
    return figure


def _layer_map(table: pd.DataFrame) -> Figure:
    height = 1.1 + 0.2 * len(table)
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.29, 0.5 / height, 0.62, 1 - 0.8 / height))
    image = axes.imshow(
        table.to_numpy(), cmap=SHARES, vmin=0, vmax=100, aspect="auto", interpolation="nearest"
    )
    names, what = _layer_names(list(table.columns))
    axes.set_xticks(range(len(names)), names, rotation=90 if what != "layer" else 0)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.set_yticks(range(len(table)), [clip(str(arm), 30) for arm in table.index])
    axes.set_xlabel(what)
    axes.grid(False)
    bar = figure.add_axes((0.93, 0.5 / height, 0.015, 1 - 0.8 / height))
    figure.colorbar(image, cax=bar)
    axes.set_title("Tokens that skip (%)")
    return figure


def _mean_curve(arm: Arm, split: str, key: str) -> pd.Series:
    curves = [curve for run in arm.completed if not (curve := run.curve(split, key)).empty]
    return pd.concat(curves, axis=1).mean(axis=1) if curves else pd.Series(dtype=float)


def _terms(comparison: SkippingComparison) -> Drawn:
    name, title = "terms", "Terms of the training loss"
    arm = comparison.subject
    curves = {} if arm is None else {key: _mean_curve(arm, "train", key) for key in TERMS}
    curves = {key: curve for key, curve in curves.items() if len(curve) > 1}
    if arm is None or not curves:
        return _absent(name, title, "the routed arm left no curve.")
    figure = new_figure(WIDTH, 2.2)
    grid = figure.subplots(1, len(curves), squeeze=False)
    figure.subplots_adjust(left=0.08, right=0.98, top=0.88, bottom=0.2, wspace=0.55)
    for axes, (key, curve) in zip(grid[0], curves.items(), strict=True):
        axes.plot(curve.index, curve, color=SOFTMAX)
        title_of, unit = TERMS[key]
        axes.set_title(title_of)
        axes.set_ylabel(unit)
        axes.set_xlabel("training step")
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
