"""What all figures are drawn with: curves, points by cost, bars with intervals, maps. Each is fed by a data frame."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from layerroute.lab.report.style import (
    INK,
    MUTED,
    PAPER,
    LineStyle,
    clip,
    legend_below,
    new_figure,
)

_SMOOTHED_FROM = 80
_PLAIN = LineStyle(color=MUTED)
NAME = 40
"""Characters of an arm's name that a figure shows; the data have it in full."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel of curves.

    Attributes:
        name: value of the data's column ``panel``.
        star: mark the best (lowest) point of each line; ``dots``: mark every point; ``inset``: magnify the end.
        ylim: fixed ends of the axis; None: those of the completed runs.
        after: draws on the axes what else the panel shows, given them and the panel's part of the data.
    """

    name: str
    title: str = ""
    ylabel: str = ""
    xlabel: str = "training step"
    star: bool = False
    dots: bool = False
    inset: bool = False
    log2: bool = False
    ylim: tuple[float, float] | None = None
    after: Callable[[Axes, pd.DataFrame], object] | None = None


def curves(
    data: pd.DataFrame,
    panels: Sequence[Panel],
    styles: Mapping[str, LineStyle],
    *,
    columns: int = 2,
    tall: float = 2.4,
    names: Mapping[str, str] | None = None,
    more: Sequence[Line2D] = (),
    nested: bool = False,
    legend: bool = True,
    **legend_settings: Any,
) -> Figure:
    """Panels of lines with one legend below.

    Args:
        data: columns ``panel``, ``line``, ``x``, ``y``, and, where a line is the mean of several, ``seed`` and
            ``status``: the band reaches from the lowest to the highest completed seed, and a run that did not complete
            is a thin line of its own that ends in a cross. Columns ``low`` and ``high`` are errors bars instead.
        names: what the legend says of a line; default its name.
        more: further entries of the legend.
        nested: draw the first lines the widest, so that lines that coincide are seen one in the other.
    """
    lines = [str(line) for line in dict.fromkeys(data["line"])]
    shown = [clip((names or {}).get(line, line), NAME if names is None else 60) for line in lines]
    rows = -(-len(panels) // columns)
    figure = new_figure(tall * rows)
    grid = figure.subplots(rows, min(columns, len(panels)), squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        part = data[data["panel"] == panel.name]
        for place, line in enumerate(lines):
            wide = 1.5 + 1.3 * (len(lines) - 1 - place) / max(1, len(lines) - 1) if nested else None
            draw_line(axes, part[part["line"] == line], styles.get(line, _PLAIN), panel, width=wide)
        _frame(axes, panel, part)
        if panel.inset:
            _magnify_end(axes, part, styles, panel)
    handles = [*(Line2D([], [], **_look(styles.get(line, _PLAIN), panels)) for line in lines), *more]
    if legend:
        texts = [*shown, *(str(line.get_label()) for line in more)]
        figure.set_figheight(tall * rows + legend_below(figure, handles, texts, **legend_settings))
    return figure


def _look(style: LineStyle, panels: Sequence[Panel]) -> dict[str, Any]:
    return style.line() | ({"marker": style.marker, "markersize": 4} if any(p.dots for p in panels) else {})


def draw_line(
    axes: Axes,
    data: pd.DataFrame,
    style: LineStyle,
    panel: Panel,
    *,
    width: float | None = None,
    size: float = 11,
) -> None:
    """One line of `curves`, with its band, star and crosses."""
    if "low" in data.columns and data["low"].notna().any():
        ends = [data["y"] - data["low"], data["high"] - data["y"]]
        axes.errorbar(data["x"], data["y"], yerr=ends, marker=style.marker, markersize=4, **style.line())
        return
    done = data if "status" not in data.columns else data[data["status"] == "completed"]
    if not done.empty:
        seeds = done if "seed" in done.columns else done.assign(seed=0)
        table = seeds.pivot_table(index="x", columns="seed", values="y").dropna()
        mean = smooth = table.mean(axis=1)
        if len(mean) >= _SMOOTHED_FROM and not panel.dots:
            smooth = mean.rolling(max(3, len(mean) // 25), center=True, min_periods=1).mean()
            axes.plot(mean.index, mean, color=style.color, linewidth=0.6, alpha=0.3)
        look = style.line() | ({} if width is None else {"linewidth": width})
        # A single evaluation is a point: a line through it would show nothing.
        if panel.dots or (len(mean) == 1 and not panel.star):
            look |= {"marker": style.marker, "markersize": 4}
        axes.plot(smooth.index, smooth, **look)
        if table.shape[1] > 1:
            lowest, highest = table.min(axis=1), table.max(axis=1)
            axes.fill_between(table.index, lowest, highest, color=style.color, alpha=0.16, linewidth=0)
        if panel.star and not mean.empty:
            best = mean.idxmin()
            axes.plot(
                [best], [mean[best]], marker="*", markersize=size, color=style.color, markeredgecolor=PAPER,
                markeredgewidth=0.7, zorder=5, linestyle="none",
            )  # fmt: skip
    if "status" in data.columns:
        for _, run in data[data["status"] != "completed"].groupby("seed"):
            axes.plot(run["x"], run["y"], **style.line() | {"linewidth": 0.8, "alpha": 0.7})
            axes.plot(run["x"].iloc[-1:], run["y"].iloc[-1:], "x", markersize=6, color=style.color)


def _frame(axes: Axes, panel: Panel, data: pd.DataFrame) -> None:
    axes.set_title(panel.title)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.margins(x=0.02)
    if panel.log2:
        axes.set_xscale("log", base=2)
        ticks = sorted(data["x"].unique())
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.minorticks_off()
    elif len(data) and data["x"].min() >= 0:
        axes.set_xlim(left=0)
    done = data["y"] if "status" not in data.columns else data.loc[data["status"] == "completed", "y"]
    if panel.ylim is not None:
        axes.set_ylim(panel.ylim)
    elif len(done) < len(data) and len(done) and done.max() > done.min():
        # Completed runs set the scale: one that diverged would press the others into a line.
        pad = 0.05 * (done.max() - done.min())
        bottom, top = axes.get_ylim()
        axes.set_ylim(max(bottom, done.min() - pad), min(top, done.max() + pad))
    if panel.after is not None:
        panel.after(axes, data)


def _magnify_end(axes: Axes, data: pd.DataFrame, styles: Mapping[str, LineStyle], panel: Panel) -> None:
    """The end of the curves in the upper right corner: where arms that differ by hundredths part.

    The axis is made taller where a completed run's curve would go through that corner; nothing is magnified where this
    would flatten the curves too much, or where too few points would be in it.
    """
    done = data if "status" not in data.columns else data[data["status"] == "completed"]
    last = done["x"].max() if len(done) else 0
    late = done[done["x"] >= 0.6 * last]
    if late["x"].nunique() < 3:
        return
    low, high = late["y"].min(), late["y"].max()
    bottom, top = axes.get_ylim()
    # Curves are drawn from point to point: the one before the corner counts too.
    before = done[done["x"] <= 0.36 * last]["x"].max()
    entering = done[done["x"] >= (before if pd.notna(before) else 0)]["y"].max()
    needed = (entering - bottom) / 0.4
    if high <= low or needed > 1.6 * (top - bottom):
        return
    axes.set_ylim(bottom, max(top, bottom + needed))
    # Other lines must not run through the labels of the magnified axes.
    cover = Rectangle(
        (0.36, 0.41), 0.66, 0.66, transform=axes.transAxes, facecolor=PAPER, zorder=3, clip_on=False
    )
    axes.add_patch(cover).set_in_layout(False)
    inset = axes.inset_axes((0.46, 0.5, 0.53, 0.46), zorder=4)
    for line, part in done.groupby("line", sort=False):
        draw_line(inset, part, styles.get(str(line), _PLAIN), panel, size=7)
    pad = 0.08 * (high - low)
    inset.set_xlim(0.6 * last, 1.02 * last)
    inset.set_ylim(low - pad, high + pad)
    inset.tick_params(labelsize=6.5)
    inset.set_title("last 40% of the run", fontsize=7, fontweight="normal", loc="right", pad=2)


def draw_points(
    axes: Axes,
    means: pd.DataFrame,
    styles: Mapping[str, LineStyle],
    *,
    by: str = "arm",
    seeds: pd.DataFrame | None = None,
) -> None:
    """Means with intervals over seeds, ringed where on the Pareto front, and the front.

    Args:
        means: a row an arm: ``x``, ``y``, ``low`` and ``high`` (NaN with one seed), ``on_front``, and ``by``.
        by: the column whose values share a style and an entry of the legend.
        seeds: ``x``, ``y`` and ``by`` of single runs, drawn small.
    """
    if seeds is not None:
        for label, rows in seeds.groupby(by, sort=False):
            axes.scatter(rows["x"], rows["y"], s=7, color=styles[str(label)].color, alpha=0.6, linewidths=0)
    named: set[str] = set()
    for row in means.to_dict("records"):
        style = styles[row[by]]
        ring: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.1} if row.get("on_front") else {}
        axes.errorbar(
            row["x"],
            row["y"],
            yerr=None if pd.isna(row["low"]) else [[row["y"] - row["low"]], [row["high"] - row["y"]]],
            color=style.color, marker=style.marker, markersize=6, capsize=3, linewidth=1.2, linestyle="none",
            label=None if row[by] in named else clip(str(row[by]), NAME),
            **ring,
        )  # fmt: skip
        named.add(row[by])
    front = means[means["on_front"].astype(bool)].sort_values("x") if "on_front" in means else means[:0]
    if len(front) > 1:
        axes.step(
            front["x"],
            front["y"],
            where="post",
            color=MUTED,
            linewidth=0.9,
            linestyle=(0, (4, 2)),
            zorder=1.5,
        )


def bars(
    data: pd.DataFrame,
    *,
    xlabel: str,
    columns: int = 1,
    xlim: tuple[float, float] | None = None,
    dots: bool = False,
) -> Figure:
    """Horizontal bars (or dots) with their intervals, a panel a value of ``panel``, all of one thickness.

    Args:
        data: ``panel`` (also its title), ``name``, ``value``, ``low`` and ``high`` (NaN where there is no interval),
            ``color``, and, where wanted, ``text`` at the right edge, ``note`` where there is no value, ``fill`` of a
            dot, and ``shift`` from the middle of the line that rows of one name share.
    """
    panels = {str(name): part for name, part in data.groupby("panel", sort=False)}
    columns = min(columns, len(panels))
    sizes = [part["name"].nunique() for part in panels.values()]
    lines = [max(sizes[place : place + columns]) for place in range(0, len(sizes), columns)]
    figure = new_figure(0.3 + sum(0.27 * most + 0.55 for most in lines))
    ratios = [most + 0.8 for most in lines]
    grid = figure.subplots(
        len(lines),
        columns,
        squeeze=False,
        gridspec_kw={"height_ratios": ratios},
        sharex="all" if dots else "none",
    ).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for place, (axes, (title, part)) in enumerate(zip(grid, panels.items(), strict=False)):
        _draw_bars(axes, part, lines[place // columns], dots)
        axes.set_title(title if len(panels) > 1 or title else "")
        if xlim is not None:
            axes.set_xlim(*xlim)
        if not dots or place >= len(panels) - columns:
            axes.set_xlabel(xlabel)
    return figure


def _draw_bars(axes: Axes, part: pd.DataFrame, most: int, dots: bool) -> None:
    names = list(dict.fromkeys(part["name"]))
    for row in part.to_dict("records"):
        place = names.index(row["name"]) + row.get("shift", 0.0)
        if pd.isna(row["value"]):
            axes.annotate(
                row["note"], (0.0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7,
                color=MUTED,
            )  # fmt: skip
            continue
        if not dots:
            axes.barh(place, row["value"], height=0.66, color=row["color"])
        known = not (pd.isna(row["low"]) or pd.isna(row["high"]))
        ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]] if known else None
        if dots or known:
            dot = {
                "fmt": "o",
                "color": row["color"],
                "markerfacecolor": row.get("fill", row["color"]),
                "markersize": 5,
            }
            axes.errorbar(
                row["value"], place, xerr=None if ends is None else np.clip(ends, 0, None), capsize=2.5,
                **(dot if dots else {"fmt": "none", "ecolor": INK, "elinewidth": 1.0}),
            )  # fmt: skip
    axes.set_yticks(range(len(names)), [two_lines(str(name)) for name in names])
    axes.set_ylim(most - 0.5, -0.5)
    axes.grid(False, axis="y")
    if "text" in part.columns:
        right = axes.twinx()
        right.set_ylim(axes.get_ylim())
        right.set_yticks(range(len(names)), part["text"])
        right.tick_params(length=0)
        right.grid(False)


def two_lines(label: str, length: int = 29) -> str:
    """``label`` in at most two lines."""
    first, *rest = textwrap.wrap(label, length) or [""]
    return "\n".join([first, clip(" ".join(rest), length)] if rest else [first])


def maps(
    tables: Mapping[str, pd.DataFrame],
    *,
    cmap: Colormap,
    ends: tuple[float, float],
    xlabel: str = "",
    bar: str = "",
    numbers: bool = False,
    marks: Mapping[str, Sequence[bool]] | None = None,
) -> Figure:
    """One map below the other: the colour of a cell is its value; all share their columns' names and one colour bar.

    Args:
        tables: values by title; names of rows and columns are shown. NaN is left blank.
        bar: what the colour bar says; none where it is empty.
        numbers: write values into cells, where columns are few.
        marks: columns of a table that get a star.
    """
    longest = max(len(table) for table in tables.values())
    lines = sum(len(table) for table in tables.values())
    figure = new_figure(max(0.6 + 0.45 * len(tables) + 0.24 * lines, 1.9 if bar else 0))
    ratios = [max(len(table), 0.4 * longest / 10) for table in tables.values()]
    grid = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, (title, table) in zip(grid, tables.items(), strict=True):
        values = table.to_numpy(dtype=float)
        image = axes.imshow(
            values, cmap=cmap, vmin=ends[0], vmax=ends[1], aspect="auto", interpolation="nearest"
        )
        axes.set_title(title, pad=12 if marks else 6)
        axes.set_yticks(range(len(table)), [clip(str(name), 30) for name in table.index])
        _few_names(axes, [str(name) for name in table.columns], last=axes is grid[-1] or numbers)
        axes.tick_params(length=0)
        axes.grid(False)
        if numbers and table.shape[1] <= 16:
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=INK)
        for column in np.flatnonzero((marks or {}).get(title, ())):
            axes.text(column, -0.5, "*", ha="center", va="bottom", fontsize=9, color=INK)
    grid[-1].set_xlabel(xlabel)
    if bar:
        scale = figure.colorbar(
            image, ax=list(grid), aspect=30, shrink=min(1.0, 1.6 / figure.get_figheight())
        )
        scale.set_label(bar, fontsize=7)
        scale.outline.set_visible(False)
    return figure


def _few_names(axes: Axes, names: Sequence[str], *, last: bool) -> None:
    longest = max(map(len, names))
    every = max(1, len(names) // 34 + 1) if longest < 6 else 1
    places = range(0, len(names), every)
    axes.set_xticks(places, [names[place] if last else "" for place in places], fontsize=6.5)
    if longest >= 6:
        axes.tick_params(axis="x", rotation=90)
