"""The page and picture of `layerroute transfer`: one line a kind of text, home marked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from layerroute.lab.report.figures import FigureEntry
from layerroute.lab.report.html import data_link, environment, inline_svg
from layerroute.lab.report.plots import bars
from layerroute.lab.report.style import GDN, INK, SOFTMAX, figure_style, save_figure
from layerroute.lab.transfer import first_screen, points_of, summary, titles, transfer_table

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
    who = "sequence" if record["recipe"].get("granularity") == "sequence" else "token"
    title = f"{record['model']}: per-{who} routing against {titles(record)}, at equal executed FLOPs"
    caption = (
        "A line a kind of text. Full dot: the kind was left out (away). Empty dot: held-out text of what was "
        "calibrated on (home). Bars: 95 % intervals."
    )
    page = (
        environment()
        .get_template("transfer.html.j2")
        .render(
            title="Does routing hold away from home?",
            figure=FigureEntry(name=FIGURE, title=title, caption=caption),
            screen=first_screen(record),
            sentences=summary(record),
            table=transfer_table(record),
            svg=inline_svg(folder / f"{FIGURE}.svg"),
            data=data_link(folder / f"{FIGURE}.csv"),
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
    home = data["home"].astype(bool)
    shown = data.sort_values("budget", kind="stable").assign(
        panel=[f"{budget:.0%} of routed sites asked to skip" for budget in sorted(data["budget"])],
        name=lambda rows: rows["kind"],
        value=lambda rows: rows["mean"].astype(float),
        low=lambda rows: rows["low_95"].astype(float),
        high=lambda rows: rows["high_95"].astype(float),
        color=home.map({False: SOFTMAX, True: GDN}),
        fill=home.map({False: SOFTMAX, True: "white"}),
        shift=home.map({False: -0.14, True: 0.14}),
        note=home.map({False: "away: no verdict, costs differ", True: "home: no verdict, costs differ"}),
    )
    figure = bars(
        shown, xlabel=f"routed less {against} (nats / token); left of 0 routing is better", dots=True
    )
    for axes in figure.axes:
        axes.axvline(0.0, color=INK, linewidth=0.9)
    for word, color, fill in (("away", SOFTMAX, SOFTMAX), ("home", GDN, "white")):
        figure.axes[0].plot([], [], "o", color=color, markerfacecolor=fill, markersize=5, label=word)
    figure.legend(loc="outside lower right", ncols=2)
    return figure
