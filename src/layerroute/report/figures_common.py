"""Figures of both reports: final bars, kinds of tokens, annealing, and a map of rates by layer and head."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from layerroute.analysis.arms import Arm
from layerroute.analysis.tokens import TokenKinds
from layerroute.report.style import GDN, INK, MUTED, PAPER, SOFTMAX, WIDTH, LineStyle, clip, new_figure

_PALETTE = LinearSegmentedColormap.from_list("rates", [GDN, PAPER, SOFTMAX])


def bars_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Final validation loss of every arm with a completed run: mean over seeds, half width of the 95 % interval."""
    rows = []
    for arm in arms:
        estimate = arm.estimate("metrics", "validation_loss")
        if estimate is not None:
            rows.append(
                {
                    "arm": arm.label,
                    "validation_loss": estimate.mean,
                    "half_width_95": estimate.half_width,
                    "seeds": estimate.n,
                }
            )
    return pd.DataFrame(rows, columns=["arm", "validation_loss", "half_width_95", "seeds"])


def bars_figure(data: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """A bar an arm from the lowest loss shown, single seeds without an interval."""
    height = 0.75 + 0.27 * len(data)
    figure = new_figure(WIDTH, height)
    axes = figure.add_axes((0.27, 0.5 / height, 0.68, 1 - 0.6 / height))
    places = range(len(data))
    half = data["half_width_95"].astype(float)
    axes.barh(
        list(places),
        data["validation_loss"],
        height=0.66,
        color=[colours.get(str(arm), MUTED) for arm in data["arm"]],
    )
    several = half.notna()
    axes.errorbar(
        data["validation_loss"][several],
        [place for place, has in zip(places, several, strict=True) if has],
        xerr=half[several],
        fmt="none",
        ecolor=INK,
        elinewidth=1.0,
        capsize=2.5,
    )
    axes.set_yticks(list(places), [clip(str(arm), 30) for arm in data["arm"]])
    axes.invert_yaxis()
    low = float((data["validation_loss"] - half.fillna(0.0)).min())
    high = float((data["validation_loss"] + half.fillna(0.0)).max())
    room = high - low or abs(high) or 1.0
    # Losses differ in their second digit: bars from 0 would all look alike. The caption says where they begin.
    axes.set_xlim(max(0.0, low - 0.25 * room), high + 0.08 * room)
    axes.grid(False, axis="y")
    axes.set_xlabel("final validation loss (nats)")
    return figure


def kinds_data(groups: Mapping[str, TokenKinds]) -> pd.DataFrame:
    """Share of decisions for the expensive path by cut and kind of token, with bootstrap intervals."""
    rows = [
        {
            "by": cut,
            "kind": kind.kind,
            "tokens": kind.tokens,
            "rate": kind.rate,
            "low_95": kind.low,
            "high_95": kind.high,
            "p_value": group.p_value,
        }
        for cut, group in groups.items()
        for kind in group.kinds
    ]
    return pd.DataFrame(
        rows, columns=["by", "kind", "tokens", "rate", "low_95", "high_95", "p_value"], dtype=object
    )


def kinds_figure(data: pd.DataFrame, expensive: str) -> Figure:
    """A panel for each cut, a bar for each kind of token."""
    cuts = list(dict.fromkeys(data["by"]))
    most = max(int((data["by"] == cut).sum()) for cut in cuts)
    height = 0.8 + 0.25 * most
    lines = -(-len(cuts) // 2)
    figure = new_figure(WIDTH, height * lines)
    grid = figure.subplots(lines, min(2, len(cuts)), squeeze=False, sharex=True)
    figure.subplots_adjust(
        left=0.21, right=0.98, top=1 - 0.25 / (height * lines), bottom=0.45 / (height * lines), wspace=0.62, hspace=0.5
    )  # fmt: skip
    for axes in grid.flat[len(cuts) :]:
        axes.set_visible(False)
    for axes, cut in zip(grid.flat, cuts, strict=False):
        part = data[data["by"] == cut]
        rate = 100 * part["rate"].astype(float)
        low, high = (
            100 * part[name].astype(float).fillna(part["rate"].astype(float))
            for name in ("low_95", "high_95")
        )
        places = list(range(len(part)))
        axes.barh(places, rate, height=0.66, color=SOFTMAX)
        error = [(rate - low).clip(lower=0), (high - rate).clip(lower=0)]
        axes.errorbar(rate, places, xerr=error, fmt="none", ecolor=INK, capsize=2)
        axes.set_yticks(
            places, [f"{kind} ({count})" for kind, count in zip(part["kind"], part["tokens"], strict=True)]
        )
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlim(0, 100)
        axes.set_title(cut)
    for axes in grid[-1]:
        axes.set_xlabel(f"decisions for {expensive} (%)")
    return figure


def annealing_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Temperature of the router's training-time softmax, and the mean rate asked of or taken in training, by step."""
    parts = []
    for arm in arms:
        for run in arm.completed:
            if run.value("routing", "control") is not None:
                continue
            curves = {"temperature": run.curve("train", "temperature")}
            rates = [curve for site in arm.sites if not (curve := run.curve("train", f"rate/{site}")).empty]
            if rates:
                curves["mean rate in training"] = pd.concat(rates, axis=1).mean(axis=1)
            for name, curve in curves.items():
                if len(curve) > 1:
                    parts.append(
                        pd.DataFrame(
                            {
                                "arm": arm.label,
                                "seed": run.seed,
                                "what": name,
                                "step": curve.index,
                                "value": curve.to_numpy(),
                            }
                        )
                    )
    columns = ["arm", "seed", "what", "step", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def annealing_figure(data: pd.DataFrame, styles: Mapping[str, LineStyle]) -> Figure:
    """Left the temperature, right the rate, each against the step; a line is the mean of an arm's seeds."""
    names = list(dict.fromkeys(data["what"]))
    arms = list(dict.fromkeys(data["arm"]))
    legend = 0.2 + 0.18 * -(-len(arms) // 3)
    height = 2.5 + legend
    figure = new_figure(WIDTH, height)
    grid = figure.subplots(1, len(names), squeeze=False)[0]
    figure.subplots_adjust(
        left=0.08, right=0.98, top=1 - 0.25 / height, bottom=(0.5 + legend) / height, wspace=0.25
    )
    for axes, name in zip(grid, names, strict=True):
        for arm, rows in data[data["what"] == name].groupby("arm", sort=False):
            mean = rows.groupby("step")["value"].mean()
            style = styles.get(str(arm), LineStyle(color=MUTED, dashes="-"))
            axes.plot(mean.index, mean, label=clip(str(arm), 26), **style.line())
        axes.set_title(name)
        axes.set_xlabel("training step")
        axes.set_ylim(bottom=0)
    handles, labels = grid[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3)
    return figure


def heads_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rate of every layer and head of the arms whose heads choose apart, mean over completed seeds."""
    rows = []
    for arm in arms:
        for site in arm.sites:
            layer, _, head = site.partition(".head")
            rate = arm.mean("routing", "rate", site)
            if head.isdigit() and rate is not None:
                rows.append(
                    {
                        "arm": arm.label,
                        "layer": int(layer.removeprefix("layer")),
                        "head": int(head),
                        "rate": rate,
                    }
                )
    return pd.DataFrame(rows, columns=["arm", "layer", "head", "rate"])


def heads_figure(data: pd.DataFrame, expensive: str) -> Figure:
    """A map an arm: rows are layers, columns heads, the colour and the number the share of tokens on ``expensive``."""
    arms = list(dict.fromkeys(data["arm"]))
    tables = {
        arm: data[data["arm"] == arm].pivot(index="layer", columns="head", values="rate") for arm in arms
    }
    lines = sum(len(table) for table in tables.values())
    height = 0.4 + 0.55 * len(arms) + 0.3 * lines
    figure = new_figure(WIDTH, height)
    ratios = [len(table) for table in tables.values()]
    grid = figure.subplots(len(arms), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    figure.subplots_adjust(left=0.1, right=0.98, top=1 - 0.3 / height, bottom=0.45 / height, hspace=0.9)
    for axes, (arm, table) in zip(grid, tables.items(), strict=True):
        axes.imshow(table.to_numpy(), cmap=_PALETTE, vmin=0, vmax=1, aspect="auto")
        for row in range(table.shape[0]):
            for column in range(table.shape[1]):
                value = float(table.to_numpy()[row, column])
                if table.shape[1] <= 16:
                    axes.text(
                        column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=INK
                    )
        axes.set_yticks(range(len(table)), [f"layer {layer}" for layer in table.index])
        axes.set_xticks(range(table.shape[1]), [str(head) for head in table.columns])
        axes.set_title(f"{clip(arm, 40)}: tokens on {expensive} (%)")
        axes.grid(False)
    grid[-1].set_xlabel("head")
    return figure
