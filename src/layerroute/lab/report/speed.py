"""Speed-up of routed execution against the share that is left out, from benchmark records, with the ideal line."""

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from layerroute.errors import UserError
from layerroute.lab.drawn import DRAWN, read_benchmark
from layerroute.lab.report.plots import Panel as Plot
from layerroute.lab.report.plots import curves
from layerroute.lab.report.style import (
    FORMATS,
    GDN,
    INK,
    MUTED,
    SOFTMAX,
    LineStyle,
    figure_style,
    save_figure,
)

Row = Mapping[str, Any]
_ARMS = {
    "sparse": LineStyle(color=SOFTMAX),
    "routed": LineStyle(color=SOFTMAX),
    "masked": LineStyle(color=GDN, dashes="--", marker="s"),
    "dense": LineStyle(color=MUTED, dashes="-.", marker="^"),
}
# Labels that a panel's title names where they are not these
_USUAL = {
    "unit": "block",
    "kv": "project",
    "skip_path": "identity",
    "cache": "dynamic",
    "dtype": "fp32",
    "context": "full_context",
}
_DOTS = (":", (0, (1, 3)), (0, (3, 3)), (0, (1, 1, 3, 2)))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One size of one record.

    Attributes:
        title: case and size.
        rows: in order of ``share``.
        share: the label that is the abscissa, ``skip`` or ``rate``.
        meaning: of the share, for the axis.
        ideal: speed-up over the baseline that no routing can beat, by share in percent.
        ideal_name: what that is.
    """

    title: str
    rows: Sequence[Row]
    share: str
    meaning: str
    ideal: Mapping[float, float]
    ideal_name: str


def speed_figures(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a panel for each size of each record: the arms against the share, and the ideal line.

    The ideal is the structural limit at exactly that share (the same model with so many layers removed); for the
    operator, one over the share of the queries; for the hybrid model, the ratio of executed FLOPs.

    Args:
        records: of ``layerroute bench``, at least one.
        path: ``.png``, ``.svg`` or ``.pdf``; its folder is made.

    Raises:
        UserError: if a record has nothing to draw.
    """
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"{path}: give the name of a .png, .svg or .pdf file.")
    with figure_style():
        save_figure(draw_speed(records), path.parent, path.stem, [path.suffix[1:]])


def _all_panels(records: Sequence[Mapping[str, Any]]) -> list[Panel]:
    panels: list[Panel] = []
    names: list[str] = []
    for record in records:
        found = list(_panels(record))
        if not found:
            raise UserError(
                f"this record of bench {record['case']} has no speed-up by share to draw; figures are for "
                f"{', '.join(DRAWN)}, where several shares were measured"
            )
        panels += found
        names += [f"{panel.title}, {_machine(record)}" for panel in found]
    titles = [panel.title for panel in panels]
    return [
        panel
        if titles.count(panel.title) == 1
        else replace(panel, title=name if names.count(name) == 1 else f"{name}, record {number}")
        for number, (panel, name) in enumerate(zip(panels, names, strict=True), start=1)
    ]


def draw_speed(records: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure of ``speed_figures``, in the style of the context."""
    panels = _all_panels(records)
    data = speed_data(records).rename(
        columns={"share_percent": "x", "speedup_median": "y", "speedup_q1": "low", "speedup_q3": "high"}
    )
    ideal = data["arm"] == "ideal"
    # Each panel has its own ideal, named in the one legend.
    data["line"] = data["arm"].where(
        ~ideal, data["panel"].map({panel.title: panel.ideal_name for panel in panels})
    )
    named = {panel.ideal_name for panel in panels}
    styles = _ARMS | {
        name: LineStyle(color=INK, dashes=dots) for name, dots in zip(sorted(named), _DOTS, strict=False)
    }
    plots = [
        Plot(
            name=panel.title,
            title="\n".join(textwrap.wrap(panel.title.replace("\n", ": "), 26)),
            xlabel=panel.meaning,
            ylabel=f"times as fast as {panel.rows[0]['baseline']}",
            after=lambda axes, _: axes.axhline(1.0, color=MUTED, linewidth=0.8),
        )
        for panel in panels
    ]
    columns = min(3, len(panels)) if len(panels) != 4 else 2
    notes = "\n".join(dict.fromkeys(map(_machine, records)))
    return curves(data, plots, styles, columns=columns, tall=2.6, title=notes, title_fontsize=6.5)


def speed_data(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What the figure shows: by panel, arm and share the speed-up, and what no routing can beat as arm ``ideal``."""
    rows = []
    for panel in _all_panels(records):
        for row in panel.rows:
            for name in _ARMS:
                if name != row["baseline"] and all(name in one["arms"] for one in panel.rows):
                    found = row["arms"][name]["speedup"]
                    rows.append(
                        (panel.title, name, 100 * row[panel.share], found["median"], found["q1"], found["q3"])
                    )
        rows += [(panel.title, "ideal", share, value, None, None) for share, value in panel.ideal.items()]
    return pd.DataFrame(
        rows, columns=["panel", "arm", "share_percent", "speedup_median", "speedup_q1", "speedup_q3"]
    )


def speed_at(records: Sequence[Mapping[str, Any]], rate: float) -> list[tuple[str, float, float]]:
    """In words how fast routed execution ran in each panel at the share nearest to a rate, with the quartiles."""
    data, found = speed_data(records), []
    for panel in _all_panels(records):
        share = 100 * (rate if panel.share == "rate" else 1 - rate)
        rows = data[(data["panel"] == panel.title) & data["arm"].isin(("sparse", "routed"))]
        if rows.empty:
            continue
        row = rows.loc[(rows["share_percent"] - share).abs().idxmin()]
        low, high = float(row["speedup_q1"]), float(row["speedup_q3"])
        text = f"{row['speedup_median']:.2f}× ({low:.2f} to {high:.2f}) in {panel.title.replace(chr(10), ' of ')}"
        found.append((f"{text} at {row['share_percent']:.0f}% {panel.meaning.split(' (')[0]}", low, high))
    return found


def read_speed_records(paths: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """Records that ``layerroute bench --out`` wrote.

    Raises:
        UserError: a file that cannot be read, or is none, or has nothing to draw, or lacks a part of what is drawn.
    """
    records = []
    for path in map(Path, paths):
        record = read_benchmark(path)
        try:
            _machine(record), speed_at([record], 0.5)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is not a whole record of `layerroute bench`: {what}") from None
        records.append(record)
    return records


def _machine(record: Mapping[str, Any]) -> str:
    hardware = record["hardware"]
    device = hardware["accelerator"] if str(record["device"]).startswith("cuda") else hardware["cpu"]
    clock = "CPU seconds" if record["clock"] == "cpu" else "wall time"
    threads = record["threads"]
    pairs = f"median and quartiles of {record['repeats']} pairs"
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}, {clock}; {pairs}"


def _panels(record: Mapping[str, Any]) -> Iterator[Panel]:
    groups: dict[str, list[Row]] = {}
    if record["case"] not in DRAWN:
        return
    share = "skip" if any("skip" in row for row in record["rows"]) else "rate"
    for row in record["rows"]:
        if share in row and ("limit" in row or record["case"] in ("attention", "hybrid")):
            groups.setdefault(_title(record["case"], row), []).append(row)
    for title, group in groups.items():
        rows = sorted(group, key=lambda row: float(row[share]))
        if share == "skip":
            meaning, ideal, name = "skipped (% of routed layers)", _removed(rows), "layers removed"
        elif record["case"] == "attention":
            least = 100 * float(rows[0]["rate"])
            asked = (least + (100 - least) * i / 60 for i in range(61))
            meaning, ideal, name = "queries asked (%)", {one: 100 / one for one in asked}, "1 / share asked"
        else:
            ideal = {100 * row["rate"]: _flops(row, "masked") / _flops(row, "sparse") for row in rows}
            meaning, name = "tokens on softmax (%)", "by executed FLOPs"
        yield Panel(title=title, rows=rows, share=share, meaning=meaning, ideal=ideal, ideal_name=name)


def _title(case: str, row: Row) -> str:
    words = [f"{row['batch']} x {row['time']} tokens"]
    words += [str(row["pass"])] if "pass" in row else []
    words += ["all logits"] if row.get("scoring") else []
    words += [str(row[key]) for key, usual in _USUAL.items() if row.get(key, usual) != usual]
    return f"{case}\n{', '.join(words)}"


def _removed(rows: Sequence[Row]) -> dict[float, float]:
    """The structural limit at exactly each share: what sparse reaches, over the share of the limit that it reaches."""
    whole = rows[0]["limit"].get("whole", rows[0]["baseline"])
    ideal = {0.0: _median(rows[0], whole, "speedup") if whole != rows[0]["baseline"] else 1.0}
    for row in rows:
        ideal[100 * row["skip"]] = _median(row, "sparse", "speedup") / _median(
            row, "sparse", "share_of_limit"
        )
    return ideal


def _median(row: Row, arm: str, what: str) -> float:
    return float(row["arms"][arm][what]["median"])


def _flops(row: Row, arm: str) -> float:
    return float(row["arms"][arm]["executed_flops_per_token"])
