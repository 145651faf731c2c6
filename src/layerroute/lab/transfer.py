"""What a transfer record comes to: a row a text, and a sentence a budget. No verdict without equal executed FLOPs."""

from collections.abc import Mapping, Sequence
from typing import Any

from layerroute.lab.format import MISSING, percent, signed
from layerroute.lab.table import Cell, Column, Row, Table

GREEDY = ("static_block_greedy", "static_greedy")
"""The control that is told beside the best one: of whole layers where there is one."""
NOTES = (
    "Routed − best static: cross-entropy in nats per token at equal executed FLOPs, less that of the static arm which "
    "routing has the least lead over on this text. All thresholds of the router are moved "
    "by one offset, until it saves what the static arm saves on this very text, within half a point; where that is out "
    "of its reach there is no verdict. Intervals: 95 %, paired bootstrap over windows, one window a document.",
    "Away: the kind was left out of calibration. Home: held-out text of kinds that were calibrated on. Asked and "
    "served: share of routed sites skipped, as the router serves without moving. Worst: the largest difference of one "
    "window.",
)


def reference_of(row: Mapping[str, Any]) -> str | None:
    """The static arm that a text is told against: the one that routing has the least lead over, at equal cost."""
    found = {arm: gap for arm in row["arms"] if (gap := gap_of(row, arm)) is not None}
    return max(found, key=lambda arm: found[arm]["mean"]) if found else next(iter(row["arms"]), None)


def greedy_of(row: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Routed less greedy static pruning at equal cost, or None."""
    return gap_of(row, next((arm for arm in GREEDY if arm in row["arms"]), None))


def gap_of(row: Mapping[str, Any], arm: str | None) -> Mapping[str, float] | None:
    """Routed less an arm at equal cost, or None."""
    return None if arm is None else row["arms"][arm]["at_equal_cost"]


def outcome(gap: Mapping[str, float] | None) -> str:
    """``wins``, ``loses``, ``cannot be told``, or ``no verdict`` where the arms do not cost the same."""
    if gap is None:
        return "no verdict"
    return "wins" if gap["high"] < 0 else "loses" if gap["low"] > 0 else "cannot be told"


def transfer_table(record: Mapping[str, Any]) -> Table:
    """One row a budget and text: asked and served, routed less each static arm at equal cost."""
    rows = []
    for row in sorted(record["rows"], key=lambda one: (one["budget"], one["home"])):
        reference = reference_of(row)
        gap, other = gap_of(row, reference), greedy_of(row)
        static = None if reference is None else row["arms"][reference]
        cells = (
            Cell(row["kind"]),
            Cell("home" if row["home"] else "away"),
            Cell(percent(row["budget"]), row["budget"]),
            Cell(percent(row["served"]), row["served"]),
            Cell(
                MISSING if static is None else percent(static["saved"]),
                None if static is None else static["saved"],
            ),
            Cell(MISSING if gap is None else signed(gap["mean"]), None if gap is None else gap["mean"]),
            Cell(MISSING if gap is None else f"{signed(gap['low'])} to {signed(gap['high'])}"),
            Cell(MISSING if gap is None else signed(gap["worst"], 2), None if gap is None else gap["worst"]),
            Cell(
                MISSING if other is None else signed(other["mean"]),
                None if other is None else other["mean"],
            ),
            Cell(outcome(gap)),
        )
        rows.append(Row(cells=cells))
    numeric = (
        "Asked",
        "Served",
        "FLOPs saved",
        "Routed − best static",
        "95% interval",
        "Worst",
        "Routed − greedy",
    )
    return Table(
        name="Table of transfer",
        title=f"Routed less {titles(record)}, by kind of text",
        columns=(
            Column(label="Text"),
            Column(label="Where"),
            *(Column(label=label, numeric=True) for label in numeric),
            Column(label="Routing"),
        ),
        rows=tuple(rows),
        notes=NOTES,
    )


def titles(record: Mapping[str, Any]) -> str:
    """What the reference arms are called."""
    found = {arm["title"] for row in record["rows"] for arm in row["arms"].values()}
    return f"the best of {len(found)} static arms" if len(found) > 1 else next(iter(found), "static pruning")


def summary(record: Mapping[str, Any]) -> list[str]:
    """A sentence a budget and place: the mean over kinds, the worst kind, and the worst window."""
    sentences = []
    for budget in sorted({row["budget"] for row in record["rows"]}):
        for home in (False, True):
            rows = [row for row in record["rows"] if row["budget"] == budget and row["home"] is home]
            if rows:
                sentences.append(_sentence(f"{budget:.0%} {'home' if home else 'away'}", rows))
    return sentences


def _sentence(where: str, rows: Sequence[Mapping[str, Any]]) -> str:
    gaps = {row["kind"]: gap for row in rows if (gap := gap_of(row, reference_of(row))) is not None}
    missing = len(rows) - len(gaps)
    without = f" {missing} of {len(rows)} texts have no verdict." if missing else ""
    if not gaps:
        return f"{where}: no verdict.{without}"
    mean = sum(gap["mean"] for gap in gaps.values()) / len(gaps)
    worst = max(gaps, key=lambda kind: gaps[kind]["mean"])
    window = max(gaps, key=lambda kind: gaps[kind]["worst"])
    count = [
        sum(outcome(gap) == word for gap in gaps.values()) for word in ("wins", "cannot be told", "loses")
    ]
    return (
        f"{where}: routing wins on {count[0]}, cannot be told on {count[1]}, loses on {count[2]} of {len(gaps)} texts; "
        f"mean {signed(mean)} nats, least lead on {worst} ({signed(gaps[worst]['mean'])}), worst window "
        f"{signed(gaps[window]['worst'], 2)} ({window}).{without}"
    )


def points_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The picture's data: a dot a row that has a verdict, or None where it has none."""
    points = []
    for row in record["rows"]:
        gap = gap_of(row, reference_of(row))
        points.append(
            {
                "budget": row["budget"],
                "kind": row["left_out"] or row["kind"],
                "home": row["home"],
                "mean": None if gap is None else gap["mean"],
                "low_95": None if gap is None else gap["low"],
                "high_95": None if gap is None else gap["high"],
                "worst": None if gap is None else gap["worst"],
                "served": row["served"],
            }
        )
    return points
