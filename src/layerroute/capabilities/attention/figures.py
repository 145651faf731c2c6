"""The figures that only attention routing has: its layers, training, routing over time, and heads."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from layerroute.capabilities.attention.architecture import architecture_data, describe, flops_data
from layerroute.capabilities.attention.diagram import architecture_figure, comparison_figure
from layerroute.capabilities.attention.tables import bigram_losses
from layerroute.capabilities.recall.figures import draw_recall, draw_recall_cost
from layerroute.lab.arms import Arm
from layerroute.lab.format import listing, number, path_name, plural
from layerroute.lab.report.figures import (
    CurveOf,
    Drawn,
    FigureSpec,
    View,
    annealing,
    curves_data,
    final_bars,
    front,
    lines,
    speed,
    token_kinds,
    token_layers,
    token_maps,
)
from layerroute.lab.report.plots import Panel, curves, maps
from layerroute.lab.report.style import (
    BETWEEN,
    GDN,
    GDN_PALE,
    GRID,
    INK,
    MUTED,
    PAPER,
    SOFTMAX,
    SOFTMAX_PALE,
    LineStyle,
    clip,
)
from layerroute.lab.runs import Run

MOST_PANELS = 9  # sites with a panel of their own; beyond, one panel a layer
MOST_ARMS = 4
_HALO = [withStroke(linewidth=2.2, foreground=PAPER)]


def _seeds(arm: Arm) -> str:
    return f"n = {plural(len(arm.completed), 'seed')}"


def draw_architecture(view: View) -> Drawn | str:
    """The layers of the subject, with both paths of routed ones."""
    comparison = view.comparison
    arm = comparison.subject or next((a for a in comparison.arms if a.kind.routed), comparison.arms[0])
    architecture = describe(arm)
    if architecture is None:
        return f"the recipe of {arm.label} names no layer pattern."
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
    return architecture_figure(architecture), architecture_data([arm]), caption


def draw_side_by_side(view: View) -> Drawn | str:
    """Baseline and subject side by side, with the cost of each layer."""
    left, right = view.comparison.baseline, view.comparison.subject
    if left is None or right is None:
        return "it takes a baseline and a dynamic arm."
    if describe(left) is None or describe(right) is None:
        return "a recipe names no layer pattern."
    caption = (
        f"{left.label} and {right.label} with forward FLOPs per token of each mixer, and below of the whole "
        "model: with every path computed, with each token's chosen path only at the measured rate "
        f"({_seeds(right)}), and at an even split; in brackets relative to {left.label}. Percentages are "
        "shares of the validation tokens."
    )
    data = pd.concat([architecture_data([left, right]), flops_data([left, right])], ignore_index=True)
    return comparison_figure(left, right), data, caption


def training_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Losses in nats, accuracy in percent, and the balance loss of learned routers, by panel."""

    def of(split: str, *keys: str, scale: float = 1.0) -> CurveOf:
        def first(_: Arm, run: Run) -> pd.Series:
            found = (scale * run.curve(split, key) for key in keys)
            return next((one for one in found if not one.empty), pd.Series(dtype=float))

        return first

    balance = of("train", "balance_loss")
    return curves_data(
        arms,
        {
            "Training loss": of("train", "lm_loss", "loss"),
            "Validation loss": of("validation", "loss"),
            "Validation accuracy": of("validation", "accuracy", scale=100.0),
            "Load balance loss": lambda arm, run: (
                balance(arm, run) if arm.kind.learned else pd.Series(dtype=float)
            ),
        },
    )


def draw_training(view: View) -> Drawn | str:
    """The 2×2 grid: training loss, validation loss with the best point starred, accuracy, balance loss."""
    comparison, data = view.comparison, training_data(view.arms)
    if data.empty:
        return "no run has curves."
    bigrams = bigram_losses(view.arms)
    dashes: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (6, 2, 1, 2))}

    def floor(axes: Axes, _: pd.DataFrame) -> None:
        for loss in bigrams:
            axes.axhline(loss, **dashes)

    static = any(not arm.kind.routed for arm in view.arms)
    loss = "loss (nats / token)"
    panels = (
        Panel(name="Training loss", title="Training loss", ylabel=loss),
        Panel(name="Validation loss", title="Validation loss", ylabel=loss, star=True, inset=True, after=floor),
        Panel(name="Validation accuracy", title="Validation accuracy", ylabel="next tokens right (%)"),
        Panel(
            name="Load balance loss", title="Load balance loss", ylabel="Switch loss (no unit)",
            after=partial(_balance_panel, static=static),
        ),
    )  # fmt: skip
    names = {}
    for arm in view.arms:
        final = arm.mean("metrics", "validation_loss")
        tail = "not completed" if final is None else f"{number(final)} (n = {len(arm.completed)})"
        names[arm.label] = f"{clip(arm.label, 44)}  {tail}"
    figure = curves(
        lines(data), panels, view.styles, names=names, handlelength=3.0,
        more=[Line2D([], [], **dashes, label=f"bigram, back-off  {number(value)}") for value in bigrams],
        title="arm, final validation loss, completed seeds", title_fontsize=7.5,
    )  # fmt: skip
    seeds = sorted({len(arm.completed) for arm in view.arms if arm.completed})
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
    return figure, data, caption


def _balance_panel(axes: Axes, data: pd.DataFrame, *, static: bool) -> None:
    if data.empty:
        axes.set_axis_off()
        axes.set_title("")
        axes.text(
            0.5, 0.5, "no arm here has a\nload balance loss", transform=axes.transAxes, ha="center", va="center",
            color=MUTED,
        )  # fmt: skip
        return
    said = {1.0: "1: even, or an undecided router; 2: all on one path"} | (
        {0.0: "static arms: 0"} if static else {}
    )
    for place, text in said.items():
        axes.axhline(place, color=GRID if place else MUTED, linewidth=1.0)
        axes.annotate(
            text, (0.98, place), xycoords=("axes fraction", "data"), ha="right", va="top" if place else "bottom",
            fontsize=7.5, color=MUTED, xytext=(0, -4 if place else 3), textcoords="offset points", path_effects=_HALO,
        )  # fmt: skip
    axes.set_ylim(
        -0.06 if static else min(0.8, float(data["y"].min())), max(1.25, 1.06 * float(data["y"].max()))
    )


def routing_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Shares of both paths while training: arm, seed, site, split, step."""
    parts = [
        pd.DataFrame(
            {"arm": arm.label, "seed": run.seed, "site": site, "split": split, "step": curve.index,
             arm.paths[0]: 1 - curve.to_numpy(), arm.paths[1]: curve.to_numpy()}
        )
        for arm in arms
        for run in arm.completed
        for site in arm.sites
        for split in ("train", "validation")
        if not (curve := run.curve(split, f"rate/{site}")).empty
    ]  # fmt: skip
    if not parts:
        return pd.DataFrame(columns=["arm", "seed", "site", "split", "step", "gdn", "softmax"])
    return pd.concat(parts, ignore_index=True)


def panels_of(arm: Arm) -> dict[str, list[str]]:
    """Sites by panel: one each, or one panel a layer, or all in one, as their number asks."""
    sites = list(arm.sites)
    if len(sites) <= MOST_PANELS:
        return {site: [site] for site in sites}
    layers: dict[str, list[str]] = {}
    for site in sites:
        layers.setdefault(site.partition(".")[0], []).append(site)
    return layers if len(layers) <= 2 * MOST_PANELS else {"all sites": sites}


def draw_routing(view: View) -> Drawn | str:
    """Share of tokens on each path over training, a panel a site, of learned routers, the subject first."""
    data = routing_data(view.arms)
    learned = [arm for arm in view.arms if arm.kind.learned and arm.label in set(data["arm"])]
    arms = sorted(learned, key=lambda arm: arm is not view.comparison.subject)[:MOST_ARMS]
    if not arms:
        return "no completed run with a learned router has curves of its rates."
    parts, panels = [], []
    for arm in arms:
        cheap, expensive = arm.paths
        for place, (name, sites) in enumerate(panels_of(arm).items()):
            title = name if len(arms) == 1 else f"{clip(arm.label, 24)}: {name}"
            own = data[(data["arm"] == arm.label) & data["site"].isin(sites)]
            rate = own.groupby(["split", "seed", "step"])[expensive].mean().mul(100).reset_index()
            main = rate[rate["split"] == ("validation" if "validation" in set(rate["split"]) else "train")]
            for path, share in ((cheap, 100 - main[expensive]), (expensive, main[expensive])):
                parts.append(
                    pd.DataFrame(
                        {"panel": title, "line": path, "seed": main["seed"], "x": main["step"], "y": share}
                    )
                )
            panels.append(
                Panel(
                    name=title, title=title, ylabel="" if place % 3 else "tokens (%)", ylim=(0, 100),
                    dots=main["step"].nunique() < 40,
                    after=partial(_routing_panel, own=own, arm=arm, pale=rate[rate["split"] == "train"]),
                )
            )  # fmt: skip
    columns = len(panels_of(arms[0]))
    cheap, expensive = arms[0].paths
    styles = {cheap: LineStyle(color=GDN), expensive: LineStyle(color=SOFTMAX)}
    names = {path: path_name(path) for path in styles}
    figure = curves(
        pd.concat(parts), panels, styles, names=names, tall=2.0,
        columns=2 if columns == 4 else min(columns, 3),
    )  # fmt: skip
    several = any(len(arm.completed) > 1 for arm in arms)
    caption = (
        f"Share of tokens (%) on {path_name(cheap)} (blue) and {path_name(expensive)} (orange) against the training "
        "step, by routed site. Thick lines: validation tokens, hard decisions without noise; pale lines: training "
        "batches, with the estimator's noise. The dotted line is an even split."
        + (" Lines are means and bands reach from the lowest to the highest seed." if several else "")
        + (" Thin orange lines are the single sites of a panel." if len(arms[0].sites) > MOST_PANELS else "")
        + (
            f" Shown are {len(arms)} of {len(learned)} arms with a learned router."
            if len(learned) > len(arms)
            else ""
        )
        + f" {listing([f'{arm.label}: {_seeds(arm)}' for arm in arms])}. The CSV has all arms; controls hold their "
        "rate by construction."
    )
    return figure, data, caption


def _routing_panel(axes: Axes, data: pd.DataFrame, own: pd.DataFrame, arm: Arm, pale: pd.DataFrame) -> None:
    """Areas behind the lines, training and single sites pale, and each path's last share at its line."""
    cheap, expensive = arm.paths
    mean = data[data["line"] == expensive].groupby("x")["y"].mean()
    if mean.empty:
        return
    train = pale.groupby("step")[expensive].mean()
    area = pd.concat([train[train.index < mean.index.min()], mean])
    axes.fill_between(area.index, 0, 100 - area, color=GDN_PALE, alpha=0.75, linewidth=0, zorder=0.5)
    axes.fill_between(area.index, 100 - area, 100, color=SOFTMAX_PALE, alpha=0.75, linewidth=0, zorder=0.5)
    axes.plot(train.index, train, color=SOFTMAX, linewidth=0.7, alpha=0.45)
    axes.plot(train.index, 100 - train, color=GDN, linewidth=0.7, alpha=0.45)
    if own["site"].nunique() > 1:
        for _, site in own[own["split"] != "train"].groupby("site"):
            axes.plot(100 * site.groupby("step")[expensive].mean(), color=SOFTMAX, linewidth=0.6, alpha=0.55)
    axes.axhline(50, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.grid(False)
    last = float(mean.iloc[-1])
    # Each beyond the nearer line, clear of both where there is room.
    for path, share, color in ((expensive, last, SOFTMAX), (cheap, 100 - last, GDN)):
        above = share > 50 or (share == 50 and path == expensive)
        inside = above if 12 < share < 88 else not above
        axes.annotate(
            f"{path_name(path)} {share:.1f}%", (mean.index[-1], share), ha="right", va="bottom" if inside else "top",
            fontsize=7.5, fontweight="bold", xytext=(-2, 3 if inside else -3), textcoords="offset points", color=color,
            path_effects=_HALO,
        )  # fmt: skip


def heads_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rate of every layer and head of the arms whose heads choose apart, mean over completed seeds."""
    rows = [
        (arm.label, int(layer.removeprefix("layer")), int(head), rate)
        for arm in arms
        for site in arm.sites
        for layer, _, head in [site.partition(".head")]
        if head.isdigit() and (rate := arm.mean("routing", "rate", site)) is not None
    ]
    return pd.DataFrame(rows, columns=["arm", "layer", "head", "rate"])


def draw_heads(view: View) -> Drawn | str:
    """A map an arm: rows are layers, columns heads."""
    data = heads_data(view.arms)
    if data.empty:
        return "in no completed run do heads choose apart."
    expensive = path_name(next(arm for arm in view.arms if arm.label == data["arm"].iloc[0]).paths[1])
    tables = {}
    for arm, part in data.groupby("arm", sort=False):
        table = 100 * part.pivot(index="layer", columns="head", values="rate")
        table.index = [f"layer {layer}" for layer in table.index]
        tables[f"{clip(str(arm), 40)}: tokens on {expensive} (%)"] = table
    caption = f"Share of validation tokens on {expensive} from hard decisions, mean over seeds."
    return maps(tables, cmap=BETWEEN, ends=(0, 100), xlabel="head", numbers=True), data, caption


FIGURES = (
    FigureSpec(name="figure-1", title="Architecture with its routing path", draw=draw_architecture),
    FigureSpec(name="figure-2", title="Training curves", draw=draw_training),
    FigureSpec(name="figure-3", title="Routing over time", draw=draw_routing),
    FigureSpec(name="figure-4", title="Architectures side by side", draw=draw_side_by_side),
    FigureSpec(name="figure-5", title="Where single tokens went", draw=token_maps),
    FigureSpec(
        name="figure-6",
        title="Loss against executed FLOPs",
        draw=partial(
            front,
            caption="Final validation loss against the forward FLOPs per token that PyTorch counted in inference (both "
            "paths where both were computed).",
            xlabel="executed forward FLOPs per token",
            cost=lambda arm: arm.by_seed("flops", "executed_per_token"),
        ),
    ),
    FigureSpec(name="figure-7", title="Recall against rate and length", draw=draw_recall, hidden=True),
    FigureSpec(name="figure-8", title="Final validation loss by arm", draw=final_bars),
    FigureSpec(name="figure-9", title="Routing by kind of token", draw=token_kinds),
    FigureSpec(
        name="figure-10", title="Annealing of temperature and rate",
        draw=partial(
            annealing, expensive="took the expensive path", title="Training tokens on the expensive path"
        ),
    ),
    FigureSpec(name="figure-11", title="Routing by layer and head", draw=draw_heads, hidden=True),
    FigureSpec(
        name="figure-12",
        title="Speed-up of inference against the rate",
        draw=partial(
            speed,
            caption="medians and quartiles; dotted the limit that is named. Not of the runs above: of their shapes.",
        ),
        hidden=True,
    ),
    FigureSpec(name="figure-13", title="Routing by kind of token and layer", draw=token_layers),
    FigureSpec(name="figure-14", title="Recall against cost", draw=draw_recall_cost, hidden=True),
)  # fmt: skip
