"""Figures that any capability can have, and how all of them are drawn, saved with their data and described."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.format import number, path_name, plural
from layerroute.lab.report.cores import on_all_cores
from layerroute.lab.report.labels import label_points
from layerroute.lab.report.plots import Panel, bars, curves, draw_points, maps
from layerroute.lab.report.speed import draw_speed, speed_data
from layerroute.lab.report.style import (
    BETWEEN,
    FORMATS,
    SOFTMAX,
    LineStyle,
    figure_style,
    new_figure,
    save_figure,
)
from layerroute.lab.report.tokens import draw_tokens, tokens_data
from layerroute.lab.runs import Run, TokenRoutes
from layerroute.lab.statistics import pareto_front, t_interval
from layerroute.lab.tokens import token_groups

Drawn = tuple[Figure, pd.DataFrame, str]
"""A figure, the data behind it, and its caption."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What figures are drawn from: the comparison, a style for every arm, and benchmark records.

    ``looks`` are markers and colours of kinds of arms, for legends by kind; empty where each arm has its own.
    """

    comparison: Comparison
    styles: Mapping[str, LineStyle]
    looks: Mapping[str, LineStyle]
    bench: Sequence[Mapping[str, Any]] = ()

    @property
    def arms(self) -> Sequence[Arm]:
        """All arms."""
        return self.comparison.arms

    def tokens(self) -> tuple[Arm, Run, TokenRoutes] | None:
        """The run whose tokens are shown: of the subject, or else of the first arm that has some; lowest seed."""
        subject = self.comparison.subject
        for arm in sorted(self.arms, key=lambda arm: (arm is not subject, not arm.kind.learned)):
            if (run := arm.told) is not None and run.token_routes is not None:
                return arm, run, run.token_routes
        return None


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """A figure as a capability describes it.

    Attributes:
        name: of its files, without suffix.
        draw: gives figure, data and caption, or in words why there is none.
        hidden: say nothing where it is absent, rather than why.
    """

    name: str
    title: str
    draw: Callable[[View], Drawn | str]
    hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure of a report. ``absent`` says why it could not be drawn; it is empty for a figure that is there."""

    name: str
    title: str
    caption: str = ""
    absent: str = ""
    hidden: bool = False


def files_of(name: str) -> list[str]:
    """All files of a figure."""
    return [f"{name}.{suffix}" for suffix in ("csv", *FORMATS)]


def build_figures(
    specs: Sequence[FigureSpec],
    view: View,
    folder: Path,
    progress: Callable[[str], None] = lambda step: None,
) -> dict[str, FigureEntry]:
    """Draw all figures into ``folder`` with their data as CSV; by name, what was drawn or why not."""
    folder.mkdir(parents=True, exist_ok=True)

    def build(number: int) -> FigureEntry:
        spec = specs[number]
        with figure_style():
            drawn = spec.draw(view)
            if isinstance(drawn, str):
                absent = f"Not drawn: {drawn}"
                return FigureEntry(name=spec.name, title=spec.title, absent=absent, hidden=spec.hidden)
            figure, data, caption = drawn
            save_figure(figure, folder, spec.name)
            data.to_csv(folder / f"{spec.name}.csv", index=False, lineterminator="\n", float_format="%.6g")
            return FigureEntry(name=spec.name, title=spec.title, caption=caption)

    entries = {}
    for place, entry in enumerate(on_all_cores(build, len(specs)), start=1):
        progress(f"{place} of {len(specs)} figures drawn")
        entries[entry.name] = entry
    return entries


LOSS = "final validation loss (nats / token)"


def final_bars(view: View, *, note: str = "") -> Drawn | str:
    """Final validation loss by arm."""
    data = bars_data(view.arms)
    if len(data) < 2:
        return "it takes two arms with a completed run."
    half = data["half_width_95"].astype(float)
    shown = pd.DataFrame(
        {
            "panel": "",
            "name": data["arm"],
            "value": data["validation_loss"],
            "low": data["validation_loss"] - half,
            "high": data["validation_loss"] + half,
            "color": [view.styles[arm].color for arm in data["arm"]],
            "text": [number(float(loss)) for loss in data["validation_loss"]],
        }
    )
    start = bars_start(data)
    high = float(shown[["value", "high"]].max(axis=None))
    caption = "Mean over seeds with the 95% t interval (none with one seed)."
    if start:
        caption += " The axis does not begin at 0: read the ends of the bars, not their lengths."
    figure = bars(shown, xlabel=LOSS, xlim=(start, high + 0.08 * ((high - start) or 1.0)))
    return figure, data, caption + note


def bars_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Final validation loss of every arm with a completed run: mean over seeds, half width of the 95 % interval."""
    found = [(arm.label, arm.estimate("metrics", "validation_loss")) for arm in arms]
    rows = [(label, e.mean, e.half_width, e.n) for label, e in found if e is not None]
    return pd.DataFrame(rows, columns=["arm", "validation_loss", "half_width_95", "seeds"])


def bars_start(data: pd.DataFrame) -> float:
    """Where the bars begin: losses differ in their second digit, and bars from 0 would all look alike."""
    half = data["half_width_95"].astype(float).fillna(0.0)
    low, high = float((data["validation_loss"] - half).min()), float((data["validation_loss"] + half).max())
    return max(0.0, low - 0.25 * (high - low or abs(high) or 1.0))


FRONT = (
    "Small points are seeds, large ones means over seeds with 95% t intervals (none with one seed); dark rings and the "
    "broken line are the Pareto front of the means: no other arm has both a lower loss and fewer FLOPs. Intervals of "
    "arms on the front may overlap with those beside it."
)


def front(
    view: View, *, caption: str, xlabel: str, cost: Callable[[Arm], Mapping[int, float]], named: bool = False
) -> Drawn | str:
    """Final loss against a cost by seed; with ``named`` arms are named beside their points and the legend has kinds."""
    data = front_data(view, cost)
    if data["arm"].nunique() < (1 if named else 2):
        return f"it takes {'arms' if named else 'two arms'} whose records have executed FLOPs."
    scale, unit = _unit(float(data["mean_cost"].median()))
    seeds = data.assign(x=data["cost"] / scale, y=data["validation_loss"])
    means = data.groupby("arm", sort=False).first().reset_index()
    half = means["half_width_95"].astype(float)
    means = means.assign(
        x=means["mean_cost"] / scale,
        y=means["mean_loss"],
        low=(means["mean_loss"] - half).clip(lower=0),
        high=means["mean_loss"] + half,
    )
    by, styles = ("kind", view.looks) if named else ("arm", view.styles)
    # The legend of many arms is taller than the axes.
    figure = new_figure(max(3.9, 0.6 + 0.19 * means[by].nunique()))
    axes = figure.subplots()
    draw_points(axes, means, styles, by=by, seeds=seeds)
    axes.set_xlabel(f"{xlabel}{unit}")
    axes.set_ylabel("validation loss (nats / token)")
    axes.ticklabel_format(useOffset=False)
    axes.margins(x=0.12, y=0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", handlelength=1.2)
    if named:
        points = list(zip(means["x"].astype(float), means["y"].astype(float), strict=True))
        label_points(axes, points, [str(arm) for arm in means["arm"]])
    return figure, data, f"{caption} {FRONT}"


def front_data(view: View, cost: Callable[[Arm], Mapping[int, float]]) -> pd.DataFrame:
    """Cost and final loss of every completed run that has both, and the arms' means over these runs.

    ``on_front`` is said of arms.
    """
    known = []
    for arm in view.arms:
        costs, losses = cost(arm), arm.loss
        both = {seed: costs[seed] for seed in sorted(costs.keys() & losses.keys())}
        if (loss := t_interval([losses[seed] for seed in both])) is not None:
            known.append((arm, both, loss))
    means = {arm.label: (sum(costs.values()) / len(costs), loss.mean) for arm, costs, loss in known}
    best = pareto_front(means)
    rows = [
        (
            arm.label, str(arm.kind), seed, costs[seed], arm.loss[seed],
            arm.mean("routing", "skipped"), *means[arm.label], loss.half_width, arm.label in best,
        )
        for arm, costs, loss in known
        for seed in costs
    ]  # fmt: skip
    names = "arm kind seed cost validation_loss skipped mean_cost mean_loss half_width_95 on_front"
    return pd.DataFrame(rows, columns=names.split())


def _unit(value: float) -> tuple[float, str]:
    """What to divide by, and how the axis says so, for numbers of about ``value``."""
    for scale, word in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if value >= scale:
            return scale, f" ({word})"
    return 1.0, ""


CurveOf = Callable[[Arm, Run], pd.Series]


def curves_data(arms: Sequence[Arm], panels: Mapping[str, CurveOf]) -> pd.DataFrame:
    """Curves of all runs, by panel: ``arm``, ``seed``, ``status``, ``panel``, ``step``, ``value``."""
    columns = ["arm", "seed", "status", "panel", "step", "value"]
    parts = [
        pd.DataFrame(
            {"arm": arm.label, "seed": run.seed, "status": run.status, "panel": name, "step": curve.index,
             "value": curve.to_numpy()}
        )
        for arm in arms
        for run in sorted(arm.runs, key=lambda run: run.seed)
        for name, curve_of in panels.items()
        if not (curve := curve_of(arm, run)).empty
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def lines(data: pd.DataFrame) -> pd.DataFrame:
    """Data of curves as `curves` takes them."""
    return data.rename(columns={"arm": "line", "step": "x", "value": "y"})


def annealing(view: View, *, expensive: str, title: str) -> Drawn | str:
    """Temperature of the router's training-time softmax, and the mean rate asked of or taken in training, by step."""

    def rate(arm: Arm, run: Run) -> pd.Series:
        rates = [curve for site in arm.sites if not (curve := run.curve("train", f"rate/{site}")).empty]
        return 100 * pd.concat(rates, axis=1).mean(axis=1) if rates else pd.Series(dtype=float)

    learned = [arm for arm in view.arms if arm.example.value("routing", "control") is None]
    panels = {
        "temperature": lambda arm, run: run.curve("train", "temperature"),
        "mean rate in training (%)": rate,
    }
    data = curves_data(learned, panels)
    data = data[
        (data["status"] == "completed")
        & (data.groupby(["arm", "seed", "panel"])["step"].transform("size") > 1)
    ]
    if data.empty:
        return "no learned router left such a curve."
    hottest = float(data.loc[data["panel"] == "temperature", "value"].max())
    looks = (
        Panel(name="temperature", title="Temperature", ylabel="τ (no unit)", ylim=(0, 1.05 * hottest or 1.0)),
        Panel(name="mean rate in training (%)", title=title, ylabel="tokens (%)", ylim=(0, 103)),
    )
    there = [panel for panel in looks if panel.name in set(data["panel"])]
    caption = (
        f"Temperature of the router's softmax in training, and the share of training tokens that {expensive}, mean "
        "over sites and seeds. Lines that coincide are drawn one in the other."
    )
    return curves(lines(data), there, view.styles, nested=True), data, caption


def token_maps(view: View) -> Drawn | str:
    """Where single tokens went."""
    found = view.tokens()
    if found is None:
        return "no completed run has stored the decisions of single tokens."
    arm, run, routes = found
    cheap, expensive = path_name(routes.paths[0]), path_name(routes.paths[-1])
    figure, shown = draw_tokens(routes)
    caption = (
        f"{plural(shown, 'validation sentence')}, rows are tokens and columns routed sites (L1 is layer 1), "
        f"{arm.label}, seed {run.seed} (n = 1 run). Blue: the token took {cheap}; orange: {expensive}; the paler, the "
        "nearer the router's probability is to 0.5. · is a space, ⏎ a line break. All sentences are in the data."
    )
    last = len(routes.paths) - 1
    beside = any(
        (choice == last) != (probability > 0.5)
        for _, choices, probabilities in routes.sentences
        for row in zip(choices, probabilities, strict=True)
        for choice, probability in zip(*row, strict=True)
    )
    if beside:
        caption += " Choices are made against a threshold other than 0.5."
    return figure, tokens_data(routes), caption


def token_kinds(view: View) -> Drawn | str:
    """Share of decisions for the expensive path by cut and kind of token, with bootstrap intervals."""
    found = view.tokens()
    if found is None:
        return "no completed run has stored the decisions of single tokens."
    arm, run, routes = found
    rows = [
        (cut, kind.kind, kind.tokens, kind.rate, kind.low, kind.high, group.p_value)
        for cut, group in token_groups(routes).items()
        for kind in group.kinds
    ]
    data = pd.DataFrame(
        rows, columns=["by", "kind", "tokens", "rate", "low_95", "high_95", "p_value"], dtype=object
    )
    shown = pd.DataFrame(
        {
            "panel": "By " + data["by"],
            "name": [f"{kind} ({count})" for kind, count in zip(data["kind"], data["tokens"], strict=True)],
            "color": SOFTMAX,
            "value": 100 * data["rate"].astype(float),
            "low": 100 * data["low_95"].astype(float),
            "high": 100 * data["high_95"].astype(float),
        }
    )  # fmt: skip
    expensive = path_name(routes.paths[-1])
    caption = (
        f"Share of decisions for {expensive} in {arm.label}, seed {run.seed}, with 95% bootstrap intervals over "
        "sentences; in brackets the number of tokens. Tests are in the table of token kinds."
    )
    return bars(shown, xlabel=f"decisions for {expensive} (%)", columns=2, xlim=(0, 100)), data, caption


def token_layers(view: View) -> Drawn | str:
    """How far each kind of token is from the mean of the layer's tokens, a map a cut."""
    found = view.tokens()
    if found is None:
        return "no completed run has stored the decisions of single tokens."
    arm, run, routes = found
    cuts = {cut: one for cut, one in token_groups(routes).items() if one.layers}
    if not cuts:
        return "there is one routed layer, and the figure by kind shows it."
    tables, rows = {}, []
    for cut, one in cuts.items():
        counts = np.array([kind.tokens for kind in one.kinds], dtype=np.float64)
        names = [f"{kind.kind} ({kind.tokens})" for kind in one.kinds]
        shares = np.stack([kind.by_layer[0] for kind in one.kinds])
        away = 100 * (shares - counts @ shares / counts.sum())
        tables[f"By {cut}"] = pd.DataFrame(away, names, [name.removeprefix("layer") for name in one.layers])
        rows += [
            (cut, kind.kind, kind.tokens, layer, *kind.by_layer[:, column], one.layer_p_values[column])
            for kind in one.kinds
            for column, layer in enumerate(one.layers)
        ]
    columns = ["by", "kind", "tokens", "layer", "rate", "low_95", "high_95", "layer_p_value"]
    most = max(5.0, float(np.ceil(max(table.abs().max(axis=None) for table in tables.values()) / 5) * 5))
    marks = {
        f"By {cut}": [p is not None and p < 0.05 for p in one.layer_p_values] for cut, one in cuts.items()
    }
    expensive = path_name(routes.paths[-1])
    figure = maps(
        tables, cmap=BETWEEN, ends=(-most, most), xlabel="layer", marks=marks,
        bar=f"{expensive}: points from\nthe layer's mean",
    )  # fmt: skip
    caption = (
        f"How far each kind of token is from the layer's mean share on {expensive}, in percentage points; {arm.label}, "
        f"seed {run.seed}. In brackets the number of tokens; a star over a layer: kinds differ there (p < 0.05, "
        "permutation within sentences, corrected for the number of layers). Places in the context are not tested. The "
        "data have the shares and their intervals."
    )
    return figure, pd.DataFrame(rows, columns=columns), caption


def speed(view: View, *, caption: str) -> Drawn | str:
    """Speed-up against the share that is left out, from benchmark records."""
    if not view.bench:
        return "no benchmark record was given (layerroute report DIR --bench RECORD)."
    said = f"Measured in pairs by `layerroute bench`, {caption}"
    return draw_speed(view.bench), speed_data(view.bench), said


def loss_curve(
    view: View, *, split: str, key: str, unit: str, caption: str, absent: str, dots: bool = False
) -> Drawn | str:
    """One loss while training, by arm."""
    data = curves_data(view.arms, {unit: lambda arm, run: run.curve(split, key)})
    if data[data["status"] == "completed"].empty:
        return absent
    panel = Panel(name=unit, ylabel=unit, dots=dots)
    return curves(lines(data), [panel], view.styles, columns=1, tall=3.1), data, caption


GENERAL = (
    FigureSpec(
        name="front",
        title="Loss against executed FLOPs",
        draw=partial(
            front,
            caption="Final validation loss against the forward FLOPs per token that were executed.",
            xlabel="executed forward FLOPs per token",
            cost=lambda arm: arm.by_seed("flops", "executed_per_token"),
        ),
    ),
    FigureSpec(name="bars", title="Final validation loss by arm", draw=final_bars),
    FigureSpec(
        name="validation",
        title="Validation loss while training",
        draw=partial(
            loss_curve,
            split="validation",
            key="loss",
            unit="validation loss (nats / token)",
            caption="Mean over seeds, the band from the lowest to the highest.",
            absent="no run was evaluated while it trained.",
            dots=True,
        ),
    ),
    FigureSpec(name="heatmap", title="Where single tokens went", draw=token_maps),
)
"""Figures of a capability that says nothing of its own."""
