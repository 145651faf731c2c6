"""The figures of layer skipping: loss against compute, where tokens skip, how the loss went."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from layerroute.capabilities.skipping.kinds import EXIT, FULL, PERIODIC, RANDOM, ROUTED, STATIC, STOCHASTIC
from layerroute.lab.arms import Arm
from layerroute.lab.report.figures import (
    Drawn,
    FigureSpec,
    View,
    annealing,
    curves_data,
    final_bars,
    front,
    lines,
    loss_curve,
    speed,
    token_kinds,
    token_layers,
    token_maps,
)
from layerroute.lab.report.plots import Panel, curves, maps
from layerroute.lab.report.style import GDN, SHARES, SOFTMAX, LineStyle

LOOKS = {
    str(FULL): ("s", GDN),
    str(ROUTED): ("o", SOFTMAX),
    str(STATIC): ("^", "#2a9d8f"),
    str(EXIT): ("D", "#8a63b3"),
    str(RANDOM): ("x", "#c2447f"),
    str(PERIODIC): ("+", "#7a8a1f"),
    str(STOCHASTIC): ("v", "#8c5a3c"),
}
"""Marker and colour of each kind of arm."""

TERMS = {  # key of the curve: (panel's title, unit)
    "lm_loss": ("Cross-entropy", "nats / token"),
    "kd_loss": ("Distillation, T²·KL", "nats / token"),
    "activity": ("Gate: mean p(run)", "no unit"),
    "budget_loss": ("Budget", "no unit"),
    "policy_loss": ("Policy gradient", "no unit"),
}


def executed_share(arm: Arm) -> dict[int, float]:
    """Executed forward FLOPs per token by seed, in percent of the plain model's."""
    base = arm.by_seed("flops", "base_per_token")
    done = arm.by_seed("flops", "executed_per_token")
    return {seed: 100 * done[seed] / base[seed] for seed in done if base.get(seed)}


def draw_terms(view: View) -> Drawn | str:
    """Each term of the subject's training loss, on its own scale."""
    arm = view.comparison.subject
    terms = {key: lambda arm, run, key=key: run.curve("train", key) for key in TERMS}
    data = curves_data([] if arm is None else [arm], terms).rename(columns={"panel": "term"})
    there = [key for key in TERMS if (data.loc[data["term"] == key, "step"]).nunique() > 1]
    if arm is None or not there:
        return "the routed arm left no curve."
    panels = [Panel(name=key, title=TERMS[key][0], ylabel=TERMS[key][1]) for key in there]
    shown = lines(data).rename(columns={"term": "panel"})
    figure = curves(shown, panels, {arm.label: LineStyle(color=SOFTMAX)}, columns=3, legend=False, tall=2.2)
    return figure, data, f"Of {arm.label}, unweighted, each on its own scale."


def draw_layers(view: View) -> Drawn | str:
    """A map of the share of tokens that skip, arms by sites."""
    shown = [arm for arm in view.arms if arm.completed and arm.sites and arm.kind in (ROUTED, STATIC, EXIT)]
    rows = [
        (arm.label, site, 1 - rate)
        for arm in shown
        for site in arm.sites
        if (rate := arm.mean("routing", "rate", site)) is not None
    ]
    if not rows:
        return "no completed run routes."
    data = pd.DataFrame(rows, columns=["arm", "site", "skip"])
    table = 100 * data.pivot(index="arm", columns="site", values="skip").reindex(
        index=[arm.label for arm in shown], columns=sorted(set(data["site"]), key=_depth)
    )
    table.columns, what = site_names(list(table.columns))
    caption = (
        "From hard decisions in inference mode on the validation text; tokens that must run count as running."
    )
    figure = maps(
        {"Tokens that skip (%)": table}, cmap=SHARES, ends=(0, 100), xlabel=what, bar="tokens that skip (%)"
    )
    return figure, data, caption


def _depth(site: str) -> tuple[int, str]:
    layer, _, unit = site.removeprefix("layer").partition(".")
    return int(layer), unit


def site_names(sites: Sequence[str]) -> tuple[list[str], str]:
    """What the axis says at each site, and the axis' own name."""
    units = {site.partition(".")[2] for site in sites}
    if len(units) == 1:
        return [site.partition(".")[0].removeprefix("layer") for site in sites], "layer"
    return [site.removeprefix("layer") for site in sites], "layer and unit"


FIGURES = (
    FigureSpec(
        name="compute",
        title="Validation loss against executed compute",
        draw=partial(
            front,
            caption="Each large point is an arm; down and to the left is better.",
            xlabel="FLOPs executed per token, % of the plain model (fewer is better)",
            cost=executed_share,
            named=True,
        ),
    ),
    FigureSpec(
        name="bars",
        title="Final validation loss by arm",
        draw=partial(
            final_bars,
            note=" Arms skip different shares of compute: the figure of loss against compute has both.",
        ),
    ),
    FigureSpec(
        name="speed",
        title="Speed-up of inference against the share that is skipped",
        draw=partial(
            speed,
            caption="medians and quartiles: how many times as fast as the plain model (dense). Sparse computes only "
            "what is not skipped, masked computes all and selects; dotted is what a model with those layers removed "
            "reaches. Not of the runs above: of their shapes.",
        ),
    ),
    FigureSpec(name="layers", title="Share of tokens that skip, by site", draw=draw_layers),
    FigureSpec(name="heatmap", title="Where single tokens run and skip", draw=token_maps),
    FigureSpec(name="kinds", title="Compute by kind of token", draw=token_kinds),
    FigureSpec(name="kinds_by_layer", title="Compute by kind of token and layer", draw=token_layers),
    FigureSpec(
        name="convergence",
        title="Training cross-entropy by arm",
        draw=partial(
            loss_curve, split="train", key="lm_loss", unit="training cross-entropy (nats / token)",
            caption="Cross-entropy alone, without the other terms of the training loss; mean over seeds, the band from "
            "the lowest to the highest.",
            absent="no run left a curve.",
        ),
    ),
    FigureSpec(
        name="validation",
        title="Validation loss while training",
        draw=partial(
            loss_curve, split="validation", key="loss", unit="validation cross-entropy (nats / token)",
            caption="Arms head to head on the same windows, routed as served; mean over seeds, the band from the "
            "lowest to the highest.",
            absent="no run was evaluated while it trained (train.evaluate_every is 0).",
            dots=True,
        ),
    ),
    FigureSpec(name="terms", title="Terms of the training loss", draw=draw_terms),
    FigureSpec(
        name="annealing", title="Temperature and share that runs, while training",
        draw=partial(annealing, expensive="ran", title="Training tokens that run"),
    ),
)  # fmt: skip
