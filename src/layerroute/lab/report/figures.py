"""All figures of a report: drawn, saved with their data, and described by captions that say what one sees."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from layerroute.capabilities.attention.routing import path_name
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.format import listing, plural
from layerroute.lab.report.architecture import describe
from layerroute.lab.report.figures_architecture import (
    architecture_data,
    architecture_figure,
    comparison_figure,
    flops_data,
)
from layerroute.lab.report.figures_common import (
    annealing_data,
    annealing_figure,
    bars_data,
    bars_figure,
    bars_note,
    heads_data,
    heads_figure,
)
from layerroute.lab.report.figures_kinds import (
    LAYERS_NOTE,
    kinds_data,
    kinds_figure,
    layers_data,
    layers_figure,
)
from layerroute.lab.report.figures_routing import routing_data, routing_figure, shown_arms
from layerroute.lab.report.figures_speed import draw_speed, speed_data
from layerroute.lab.report.figures_study import cost_data, cost_figure, recall_data, recall_figure
from layerroute.lab.report.figures_tokens import SENTENCES_SHOWN, heatmap_data, heatmap_figure, heatmap_source
from layerroute.lab.report.figures_training import training_data, training_figure
from layerroute.lab.report.old import kinds_by_layer
from layerroute.lab.report.style import FORMATS, arm_styles, figure_style, save_figure
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.tokens import token_groups

FIGURES = 13
"""Numbers that figures may have, from 1 on."""


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure of the report. ``absent`` says why it could not be drawn; it is empty for a figure that is there."""

    number: int
    title: str
    caption: str
    absent: str = ""

    @property
    def name(self) -> str:
        """File name without suffix."""
        return f"figure-{self.number}"

    @property
    def files(self) -> tuple[str, ...]:
        """File names with suffix, data first."""
        return (f"{self.name}.csv", *(f"{self.name}.{suffix}" for suffix in FORMATS))


def build_figures(
    comparison: Comparison,
    folder: Path,
    progress: Callable[[str], None] = lambda step: None,
    bench: Sequence[Mapping[str, Any]] = (),
) -> list[FigureEntry]:
    """Draw all figures into ``folder`` with their data as CSV, and return what was drawn or why not.

    ``progress`` is told in words what is drawn next; ``bench`` are records for the figure of speed.
    """
    makers: tuple[Callable[[Comparison], tuple[FigureEntry, Figure | None, pd.DataFrame]], ...] = (
        _architecture,
        _training,
        _routing,
        _comparison,
        _heatmap,
        _cost,
        _recall,
        _bars,
        _kinds,
        _annealing,
        _heads,
        partial(_speed, bench),
        _kinds_by_layer,
    )
    assert len(makers) == FIGURES
    entries = []
    with figure_style():
        for index, make in enumerate(makers, start=1):
            progress(f"drawing figure {index} of {len(makers)}")
            entry, figure, data = make(comparison)
            if figure is not None:
                save_figure(figure, folder, entry.name)
                data.to_csv(
                    folder / f"{entry.name}.csv",
                    index=False,
                    lineterminator="\n",
                    float_format="%.6g",
                    quoting=csv.QUOTE_MINIMAL,
                )
            entries.append(entry)
    return entries


def _seeds(arm: Arm) -> str:
    return f"n = {plural(len(arm.completed), 'seed')}"


def _architecture(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    arm = comparison.subject or next((a for a in comparison.arms if a.kind.routed), comparison.arms[0])
    title = "Architecture with its routing path" if arm.kind.routed else "Architecture"
    figure, architecture = architecture_figure(arm), describe(arm)
    if figure is None or architecture is None:
        return _absent(1, title, f"the recipe of {arm.label} names no layer pattern.")
    caption = (
        f"{arm.label}, from input to output. Blue is Gated DeltaNet, O(n) in the context; orange is softmax "
        "attention, O(n²)."
    )
    if architecture.router is not None:
        measured = any(segment.share is not None for segment in architecture.segments)
        shares = (
            "Percentages and line widths are each path's share of the validation tokens at the end of "
            f"training (mean, {_seeds(arm)}); in brackets the range over the sites drawn as one."
            if measured
            else "No completed run gives the shares of the paths."
        )
        where = (
            "Each routed layer decides from its own input."
            if architecture.sequential
            else "The paths are chosen without a learned router."
            if architecture.control
            else "One router reads the state once and decides for all routed layers (dashed)."
        )
        caption += f" {where} {shares}"
    caption += " Norms and residual connections are not drawn."
    return FigureEntry(number=1, title=title, caption=caption), figure, architecture_data([arm])


def _training(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Training curves", training_data(comparison)
    if data.empty:
        return _absent(2, title, "no run has curves.")
    seeds = sorted({len(arm.completed) for arm in comparison.arms if arm.completed})
    spread = (
        "Lines are means over completed seeds and bands reach from the lowest to the highest seed (n = "
        f"{listing([str(n) for n in seeds], 'or')} by arm, see the legend)."
        if seeds and seeds[-1] > 1
        else "One seed an arm: the lines have no band, and what separates them may be chance."
    )
    failed = (
        " A thin line that ends in a cross is a run that did not complete." if comparison.unfinished else ""
    )
    caption = (
        "Against the training step: cross-entropy on training batches and on validation text (nats per "
        "token; the star is the best validation point, the inset magnifies the end), share of next tokens "
        "predicted right (%), and the Switch load balance loss (1 where shares or probabilities are even, 2 "
        "with all tokens surely on one path, below 1 where a budget's threshold sends most tokens to the path that the "
        "router finds less probable). Solid lines are static arms, dashed ones learned routers, "
        f"dotted ones controls. {spread}{failed}"
    )
    return FigureEntry(number=2, title=title, caption=caption), training_figure(comparison, data), data


def _routing(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Routing over time", routing_data(comparison)
    figure = routing_figure(comparison, data)
    if figure is None:
        return _absent(3, title, "no completed run with a learned router has curves of its rates.")
    arms = shown_arms(comparison, data)
    cheap, expensive = (path_name(path) for path in arms[0].paths)
    seeds = listing([f"{arm.label}: {_seeds(arm)}" for arm in arms])
    several = (
        " Lines are means and bands reach from the lowest to the highest seed."
        if any(len(arm.completed) > 1 for arm in arms)
        else ""
    )
    many = (
        " Where a panel holds several sites, thin orange lines are the single sites."
        if len(arms[0].sites) > 9
        else ""
    )
    learned = [arm for arm in comparison.arms if arm.kind.learned and arm.label in set(data["arm"])]
    part = (
        f" Shown are {len(arms)} of {len(learned)} arms with a learned router."
        if len(learned) > len(arms)
        else ""
    )
    caption = (
        f"Share of tokens (%) on {cheap} (blue) and {expensive} (orange) against the training step, by "
        "routed site. Thick lines: validation tokens, hard decisions without noise; pale lines: training "
        f"batches, with the estimator's noise. The dotted line is an even split.{several}{many}{part} "
        f"{seeds}. The CSV has all arms; controls hold their rate by construction."
    )
    return FigureEntry(number=3, title=title, caption=caption), figure, data


def _comparison(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title = "Architectures side by side"
    left, right = comparison.baseline, comparison.subject
    if left is None or right is None:
        return _absent(4, title, "it takes a baseline and a dynamic arm.")
    figure = comparison_figure(left, right)
    if figure is None:
        return _absent(4, title, "a recipe names no layer pattern.")
    caption = (
        f"{left.label} and {right.label} with forward FLOPs per token of each mixer, and below of the whole "
        "model: with every path computed, with each token's chosen path only at the measured rate "
        f"({_seeds(right)}), and at an even split; in brackets relative to {left.label}. Percentages are "
        "shares of the validation tokens."
    )
    data = pd.concat([architecture_data([left, right]), flops_data([left, right])], ignore_index=True)
    return FigureEntry(number=4, title=title, caption=caption), figure, data


def _heatmap(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, source = "Where single tokens went", heatmap_source(comparison)
    if source is None:
        return _absent(5, title, "no completed run has stored the decisions of single tokens.")
    arm, run = source
    routes = run.token_routes
    assert routes is not None
    shown = min(len(routes.sentences), SENTENCES_SHOWN)
    cheap, expensive = path_name(routes.paths[0]), path_name(routes.paths[-1])
    caption = (
        f"{plural(shown, 'validation sentence')}, rows are tokens and columns routed sites (L1 is layer 1), "
        f"{arm.label}, seed {run.seed} (n = 1 run). Blue: the token took {cheap}; orange: {expensive}; the "
        "paler, the nearer the router's probability is to 0.5. · is a space, ⏎ a line "
        f"break.{_threshold_note(routes)}"
    )
    return FigureEntry(number=5, title=title, caption=caption), heatmap_figure(routes), heatmap_data(routes)


def _cost(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Loss against executed FLOPs", cost_data(comparison)
    if data["arm"].nunique() < 2 if len(data) else True:
        return _absent(6, title, "it takes two arms whose records have executed FLOPs.")
    caption = (
        "Final validation loss against the forward FLOPs per token that PyTorch counted in inference (both paths "
        "where both were computed). Small points are seeds, large ones means over seeds with 95% t intervals (none "
        "with one seed); a dark ring and the broken line are the Pareto front of the means: no other arm has both a "
        "lower loss and fewer FLOPs. Intervals of arms on the front may overlap with those beside it."
    )
    return FigureEntry(number=6, title=title, caption=caption), cost_figure(comparison, data), data


def _recall(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Recall against rate and length", recall_data(comparison)
    if data.empty:
        return _absent(7, title, "no completed run was trained on recall data.")
    example = next(run for arm in comparison.arms for run in arm.completed if run.value("recall"))
    caption = (
        f"{example.value('recall', 'task')} with {example.value('recall', 'pairs')} pairs. Left: share of answers "
        "recalled at the length of training against the share of tokens with softmax attention, averaged over the "
        "layers after the first; small points are seeds, large ones means with 95% t intervals, cut at 0 and 100%; "
        "arms of nearly one rate stand side by side (the data have their rates); the dotted line is blind guessing. "
        "Right: means against length, with as many pairs and more between them."
    )
    return FigureEntry(number=7, title=title, caption=caption), recall_figure(comparison, data), data


def _bars(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Final validation loss by arm", bars_data(comparison.arms)
    if len(data) < 2:
        return _absent(8, title, "it takes two arms with a completed run.")
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    caption = f"Mean over seeds with the 95% t interval (none with one seed).{bars_note(data)}"
    figure = bars_figure(data, {label: style.color for label, style in styles.items()})
    return FigureEntry(number=8, title=title, caption=caption), figure, data


def _kinds(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, source = "Routing by kind of token", heatmap_source(comparison)
    if source is None or source[1].token_routes is None:
        return _absent(9, title, "no completed run has stored the decisions of single tokens.")
    arm, run = source
    groups = token_groups(source[1].token_routes)
    data = kinds_data(groups)
    caption = (
        f"Share of decisions for {path_name(arm.paths[1])} in {arm.label}, seed {run.seed}, with 95% bootstrap "
        "intervals over sentences; in brackets the number of tokens. Tests are in the table of token kinds."
    )
    return (
        FigureEntry(number=9, title=title, caption=caption),
        kinds_figure(data, path_name(arm.paths[1])),
        data,
    )


def _kinds_by_layer(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, source = "Routing by kind of token and layer", heatmap_source(comparison)
    routes = None if source is None else source[1].token_routes
    if source is None or routes is None:
        return _absent(13, title, "no completed run has stored the decisions of single tokens.")
    found = kinds_by_layer(routes)
    if not found:
        return _absent(13, title, "there is one routed layer, and the figure by kind shows it.")
    arm, run = source
    expensive = path_name(arm.paths[1])
    caption = (
        f"How far each kind of token is from the layer's mean share on {expensive}, in percentage points; {arm.label}, "
        f"seed {run.seed}. {LAYERS_NOTE}"
    )
    return (
        FigureEntry(number=13, title=title, caption=caption),
        layers_figure(found, expensive),
        layers_data(found),
    )


def _annealing(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Annealing of temperature and rate", annealing_data(comparison.arms)
    if data.empty:
        return _absent(10, title, "no learned router left such a curve.")
    styles = arm_styles(comparison.arms, comparison.baseline, comparison.subject)
    arm = next(arm for arm in comparison.arms if arm.label == data["arm"].iloc[0])
    expensive = path_name(arm.paths[1])
    caption = (
        f"Temperature of the router's softmax in training, and the share of training tokens that took {expensive}, "
        "mean over sites and seeds. Lines that coincide are drawn one in the other."
    )
    return (
        FigureEntry(number=10, title=title, caption=caption),
        annealing_figure(data, styles, f"on {expensive}"),
        data,
    )


def _heads(comparison: Comparison) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title, data = "Routing by layer and head", heads_data(comparison.arms)
    if data.empty:
        return _absent(11, title, "in no completed run do heads choose apart.")
    expensive = path_name(next(arm for arm in comparison.arms if arm.label == data["arm"].iloc[0]).paths[1])
    caption = f"Share of validation tokens on {expensive} from hard decisions, mean over seeds."
    return FigureEntry(number=11, title=title, caption=caption), heads_figure(data, expensive), data


def _speed(
    bench: Sequence[Mapping[str, Any]], _: Comparison
) -> tuple[FigureEntry, Figure | None, pd.DataFrame]:
    title = "Speed-up of inference against the rate"
    if not bench:
        return _absent(12, title, "no benchmark record was given (layerroute report DIR --bench RECORD).")
    caption = (
        "Measured in pairs by `layerroute bench`, medians and quartiles; dotted the limit that is named. Not of the "
        "runs above: of their shapes."
    )
    return FigureEntry(number=12, title=title, caption=caption), draw_speed(bench), speed_data(bench)


def _threshold_note(routes: TokenRoutes) -> str:
    expensive = len(routes.paths) - 1
    beside = any(
        (choice == expensive) != (probability > 0.5)
        for _, choices, probabilities in routes.sentences
        for row in zip(choices, probabilities, strict=True)
        for choice, probability in zip(*row, strict=True)
    )
    return " Choices are made against a threshold other than 0.5." if beside else ""


def _absent(number: int, title: str, why: str) -> tuple[FigureEntry, None, pd.DataFrame]:
    return (
        FigureEntry(number=number, title=title, caption="", absent=f"Not drawn: {why}"),
        None,
        pd.DataFrame(),
    )
