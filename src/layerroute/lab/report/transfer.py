"""The page and picture of `layerroute transfer`: one line a kind of text, home marked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layerroute.lab.report.html import environment, inline_svg
from layerroute.lab.report.style import GDN, INK, MUTED, SOFTMAX, WIDTH, figure_style, new_figure, save_figure
from layerroute.lab.transfer import points_of, summary, titles, transfer_table

PAGE, FIGURE = "transfer.html", "transfer"


def write_transfer(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``transfer.html`` (self-contained), ``transfer.png``, ``.svg`` and ``.csv`` into ``folder``.

    Returns the files written, the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = pd.DataFrame(points_of(record))
    data.to_csv(folder / f"{FIGURE}.csv", index=False, lineterminator="\n")
    with figure_style():
        save_figure(transfer_figure(data, titles(record)), folder, FIGURE, formats=("png", "svg"))
    page = (
        environment()
        .get_template("transfer.html.j2")
        .render(
            title="Does routing hold away from home?",
            question=f"{record['model']}: per-token routing against {titles(record)}, at equal executed FLOPs",
            sentences=summary(record),
            table=transfer_table(record),
            figure=inline_svg(folder / f"{FIGURE}.svg"),
            facts=_facts(record),
        )
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return [folder / PAGE, *(folder / f"{FIGURE}.{suffix}" for suffix in ("png", "svg", "csv"))]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    kinds = [f"{name} ({own['share']:.0%}): {own['source']}" for name, own in record["data"]["kinds"].items()]
    return [
        ("Command", record["command"]),
        ("Texts", "; ".join(kinds)),
        ("Seconds", f"{record['seconds']:.0f}"),
        ("Machine", f"{record['hardware']['cpu']}, {record['hardware']['cores']} cores"),
        ("Revision", str(record["revision"]) + (" (changed)" if record["dirty"] else "")),
    ]


def transfer_figure(data: pd.DataFrame, against: str) -> Figure:
    """A panel a budget, a line a kind: away as a full dot, home as an empty one, each with its 95 % interval."""
    budgets = sorted(data["budget"].unique())
    kinds = list(dict.fromkeys(data["kind"]))
    panel = 0.28 * len(kinds)
    height = 0.62 + len(budgets) * (panel + 0.42)
    figure = new_figure(WIDTH, height)
    shared: Axes | None = None
    top = height - 0.3
    for budget in budgets:
        box = (0.2, (top - panel) / height, 0.77, panel / height)
        axes = figure.add_axes(box, sharex=shared)
        shared = shared or axes
        _panel(axes, data[data["budget"] == budget], kinds, f"{budget:.0%} of routed sites asked to skip")
        last = budget == budgets[-1]
        axes.tick_params(labelbottom=last)
        if last:
            axes.set_xlabel(f"routed less {against} (nats / token); left of 0 routing is better")
        top -= panel + 0.42
    handles, names = shared.get_legend_handles_labels() if shared is not None else ([], [])
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="lower right",
        bbox_to_anchor=(0.98, 0.0),
        ncols=max(1, len(unique)),
    )
    return figure


def _panel(axes: Axes, part: pd.DataFrame, kinds: list[str], title: str) -> None:
    axes.axvline(0.0, color=INK, linewidth=0.9)
    for home, colour, shift, label in ((False, SOFTMAX, -0.14, "away"), (True, GDN, 0.14, "home")):
        own = part[(part["home"] == home) & part["mean"].notna()]
        if own.empty:
            continue
        mean = own["mean"].astype(float)
        places = [kinds.index(kind) + shift for kind in own["kind"]]
        axes.errorbar(
            mean,
            places,
            xerr=[mean - own["low_95"].astype(float), own["high_95"].astype(float) - mean],
            fmt="o",
            markersize=5,
            color=colour,
            markerfacecolor="white" if home else colour,
            elinewidth=1.2,
            capsize=2.5,
            label=label,
        )
    for _, row in part[part["mean"].isna()].iterrows():
        place = kinds.index(row["kind"]) + (0.14 if row["home"] else -0.14)
        where = "home" if row["home"] else "away"
        axes.annotate(
            f"{where}: no verdict, costs differ", (0.0, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7, color=MUTED,
        )  # fmt: skip
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_title(title)
