"""Figure 3: how tokens spread over the paths while training."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from layerroute.capabilities.attention.routing import path_name
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.report.style import (
    GDN,
    GDN_PALE,
    INK,
    PAPER,
    SOFTMAX,
    SOFTMAX_PALE,
    WIDTH,
    clip,
    new_figure,
)

MOST_PANELS = 9  # sites with a panel of their own; beyond, one panel a layer
MOST_ARMS = 4


def routing_data(comparison: Comparison) -> pd.DataFrame:
    """What figure 3 shows: arm, seed, site, split, step, and the shares of both paths, of every routed arm."""
    parts = []
    for arm in comparison.arms:
        for run in arm.completed:
            for site in arm.sites:
                for split in ("train", "validation"):
                    curve = run.curve(split, f"rate/{site}")
                    if curve.empty:
                        continue
                    cheap, expensive = arm.paths
                    frame = pd.DataFrame(
                        {"step": curve.index, cheap: 1 - curve.to_numpy(), expensive: curve.to_numpy()}
                    )
                    for column, value in (
                        ("split", split),
                        ("site", site),
                        ("seed", run.seed),
                        ("arm", arm.label),
                    ):
                        frame.insert(0, column, value)
                    parts.append(frame)
    if not parts:
        return pd.DataFrame(columns=["arm", "seed", "site", "split", "step", "gdn", "softmax"])
    return pd.concat(parts, ignore_index=True)


def shown_arms(comparison: Comparison, data: pd.DataFrame) -> list[Arm]:
    """The arms of figure 3: learned routers, the arm in question first; controls hold their rate by construction."""
    learned = [arm for arm in comparison.arms if arm.kind.learned and arm.label in set(data["arm"])]
    learned.sort(key=lambda arm: arm is not comparison.subject)
    return learned[:MOST_ARMS]


def panels_of(arm: Arm) -> dict[str, list[str]]:
    """Sites by panel: one each, or one panel a layer, or all in one, as their number asks."""
    sites = list(arm.sites)
    if len(sites) <= MOST_PANELS:
        return {site: [site] for site in sites}
    layers: dict[str, list[str]] = {}
    for site in sites:
        layers.setdefault(site.partition(".")[0], []).append(site)
    return layers if len(layers) <= 2 * MOST_PANELS else {"all sites": sites}


def routing_figure(comparison: Comparison, data: pd.DataFrame) -> Figure | None:
    """Share of tokens on each path over training, one panel for each site (or layer, where sites are many).

    Lines with dots are validation (hard decisions, no noise), the pale line is training; areas fill the share of each
    path. With several seeds the line is their mean and the band the lowest to the highest. None without such curves.
    """
    arms = shown_arms(comparison, data)
    if not arms:
        return None
    panels = [(arm, name, sites) for arm in arms for name, sites in panels_of(arm).items()]
    columns = min(len(panels_of(arms[0])), 3) if len(panels_of(arms[0])) != 4 else 2
    rows_of = {arm.label: -(-len(panels_of(arm)) // columns) for arm in arms}
    rows = sum(rows_of.values())
    height = 0.75 + 1.95 * rows
    figure = new_figure(WIDTH, height)
    figure.suptitle(
        "Routing Distribution Evolution During Training",
        x=0.085,
        y=1 - 0.06 / height,
        ha="left",
        va="top",
        fontsize=10,
        fontweight="bold",
    )
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.085,
        right=0.972,
        top=1 - 0.52 / height,
        bottom=0.46 / height,
        hspace=0.5,
        wspace=0.12,
    )
    place, before = 0, None
    for arm, name, sites in panels:
        if before is not arm and place % columns:
            place += columns - place % columns
        before = arm
        row, column = divmod(place, columns)
        axes = figure.add_subplot(grid[row, column])
        title = name if len(arms) == 1 else f"{clip(arm.label, 60 // columns)}: {name}"
        axes.set_title(title, fontsize=8.5)
        _routing_panel(axes, data[(data["arm"] == arm.label) & data["site"].isin(sites)], arm)
        if column == 0:
            axes.set_ylabel("tokens (%)")
        else:
            axes.tick_params(labelleft=False)
        axes.set_xlabel("training step")
        place += 1
    return figure


def _routing_panel(axes: Axes, data: pd.DataFrame, arm: Arm) -> None:
    cheap, expensive = arm.paths
    per_site = 100 * data.pivot_table(index="step", columns=["split", "site", "seed"], values=expensive)
    splits = set(per_site.columns.get_level_values("split"))
    main = per_site["validation" if "validation" in splits else "train"].dropna()
    several_sites = len(set(main.columns.get_level_values("site"))) > 1
    mean = main.mean(axis=1)
    area = mean
    if "train" in splits and "validation" in splits:
        train = per_site["train"].dropna().mean(axis=1)
        area = pd.concat([train[train.index < mean.index.min()], mean])
        axes.plot(train.index, train, color=SOFTMAX, linewidth=0.7, alpha=0.45)
        axes.plot(train.index, 100 - train, color=GDN, linewidth=0.7, alpha=0.45)
    axes.fill_between(area.index, 0, 100 - area, color=GDN_PALE, alpha=0.75, linewidth=0, zorder=0.5)
    axes.fill_between(area.index, 100 - area, 100, color=SOFTMAX_PALE, alpha=0.75, linewidth=0, zorder=0.5)
    if several_sites:
        for site in main.columns.get_level_values("site").unique():
            axes.plot(main.index, main[site].mean(axis=1), color=SOFTMAX, linewidth=0.6, alpha=0.55)
    elif main.shape[1] > 1:
        low, high = main.min(axis=1), main.max(axis=1)
        axes.fill_between(mean.index, low, high, color=SOFTMAX, alpha=0.25, linewidth=0)
        axes.fill_between(mean.index, 100 - high, 100 - low, color=GDN, alpha=0.25, linewidth=0)
    dots: dict[str, Any] = {"marker": "o", "markersize": 2.6, "clip_on": False} if len(mean) < 40 else {}
    axes.plot(mean.index, 100 - mean, color=GDN, **dots)
    axes.plot(mean.index, mean, color=SOFTMAX, **dots)
    axes.axhline(50, color=INK, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.margins(x=0)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    axes.grid(False)
    if len(mean):
        _name_paths(axes, mean, {expensive: SOFTMAX, cheap: GDN}, arm)


def _name_paths(axes: Axes, mean: pd.Series, colors: dict[str, str], arm: Arm) -> None:
    """Write each path's last share beside its line, clear of what the line did just before."""
    last, end = float(mean.iloc[-1]), mean.index[-1]
    late = mean[mean.index >= mean.index[0] + 0.6 * (end - mean.index[0])]
    for path, color in colors.items():
        curve, share = (late, last) if path == arm.paths[1] else (100 - late, 100 - last)
        above = share > 50 or (share == 50 and path == arm.paths[1])
        # At the edge of the panel there is room on the inner side alone.
        inside = above if curve.max() < 88 and curve.min() > 12 else not above
        place = curve.max() if inside else curve.min()
        axes.annotate(
            f"{path_name(path)} {share:.1f}%",
            (end, place),
            ha="right",
            va="bottom" if inside else "top",
            fontsize=7.5,
            fontweight="bold",
            xytext=(-2, 3 if inside else -3),
            textcoords="offset points",
            color=color,
            path_effects=[withStroke(linewidth=2.2, foreground=PAPER)],
        )
