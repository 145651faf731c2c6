"""What a transfer record comes to: a row a text, and a sentence a budget. No verdict without equal executed FLOPs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from layerroute.lab.format import listing, percent, signed
from layerroute.lab.table import Table, cells, figures, interval, words
from layerroute.outcomes import Outcome, outcome_at_equal_cost

GREEDY = ("static_block_greedy", "static_greedy")
"""The controls that are told beside the best one, of whole layers and of the unit."""
NOTES = (
    "Routed − best rival: cross-entropy in nats per token at equal executed FLOPs, less that of the arm that "
    "routing leads by least on this text. One offset moves all thresholds of the router, until it saves what that "
    "arm saves on this very text; the last half point is read off between two offsets. Where it cannot, that arm "
    "might be the best one, and there is no verdict unless routing loses to another. Routed − greedy: the same for "
    "the greedy arm that it leads by least. "
    "Intervals: 95 %, paired bootstrap over windows, one window a document.",
    "Away: the kind was left out of calibration. Home: held-out text of kinds that were calibrated on. Asked and "
    "served: share of routed sites skipped, as the router serves without moving. Rate held: the share under "
    "`--serve rate`, which moves the thresholds within each window. Worst: the largest difference of one window.",
)


def reference_of(row: Mapping[str, Any]) -> str | None:
    """The arm that a text is told against: the one that routing has the least lead over, at equal cost.

    An arm that routing could not be moved to might be a better one. It is then the reference, and there is no verdict,
    unless routing loses to another arm already.
    """
    return _least_lead(row, list(row["arms"]))


def greedy_of(row: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Routed less greedy static pruning at equal cost, of the unit or of whole layers: the lesser lead. Or None."""
    return gap_of(row, _least_lead(row, [arm for arm in GREEDY if arm in row["arms"]]))


def _least_lead(row: Mapping[str, Any], arms: Sequence[str]) -> str | None:
    found = {arm: gap for arm in arms if (gap := gap_of(row, arm)) is not None}
    least = max(found, key=lambda arm: found[arm]["mean"], default=None)
    if least is None or outcome_at_equal_cost(found[least]) is not Outcome.LOSES:
        return next((arm for arm in arms if arm not in found), least)
    return least


def gap_of(row: Mapping[str, Any], arm: str | None) -> Mapping[str, float] | None:
    """Routed less an arm at equal cost, or None."""
    return None if arm is None else row["arms"][arm]["at_equal_cost"]


def lead_of(row: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Routed less the reference of a text at equal cost; None where there is no verdict."""
    return gap_of(row, reference_of(row))


def transfer_table(record: Mapping[str, Any]) -> Table:
    """One row a budget and text: asked and served, routed less each other arm at equal cost."""

    def of(key: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda row: (lead_of(row) or {}).get(key)

    low, high = of("low"), of("high")
    return Table.of(
        "Table of transfer",
        f"Routed less {titles(record)}, by kind of text",
        [
            words("Text", lambda row: row["kind"]),
            words("Where", lambda row: "home" if row["home"] else "away"),
            figures("Asked", lambda row: row["budget"], percent),
            figures("Served", lambda row: row["served"], percent),
            figures("Rate held", lambda row: (row.get("held") or {}).get("served"), percent),
            figures("FLOPs saved", lambda row: row["arms"].get(reference_of(row), {}).get("saved"), percent),
            figures("Routed − best rival", of("mean"), signed),
            cells("95% interval", lambda row: interval(low(row), high(row), signed)),
            figures("Worst", of("worst"), lambda value: signed(value, 2)),
            figures("Routed − greedy", lambda row: (greedy_of(row) or {}).get("mean"), signed),
            words("Routing", lambda row: outcome_at_equal_cost(lead_of(row))),
        ],
        sorted(record["rows"], key=lambda one: (one["budget"], one["home"])),
        notes=NOTES,
    )


def titles(record: Mapping[str, Any]) -> str:
    """What the reference arms are called. Those of calibration are static; a folder that is named may be a router."""
    found = {name: arm["title"] for row in record["rows"] for name, arm in row["arms"].items()}
    if len(found) < 2:
        return next(iter(found.values()), "static pruning")
    static = all(name.startswith("static_") for name in found)
    return f"the best of {len(found)} {'static arms' if static else 'arms'}"


def summary(record: Mapping[str, Any]) -> list[str]:
    """A sentence a budget and place: the mean over kinds, the worst kind, and the worst window."""
    groups: dict[tuple[float, bool], list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["budget"], row["home"]), []).append(row)
    return [
        _sentence(f"{budget:.0%} {'home' if home else 'away'}", rows)
        for (budget, home), rows in sorted(groups.items())
    ]


def _sentence(where: str, rows: Sequence[Mapping[str, Any]]) -> str:
    gaps = {row["kind"]: gap for row in rows if (gap := lead_of(row)) is not None}
    missing = len(rows) - len(gaps)
    without = f" {missing} of {len(rows)} texts have no verdict." if missing else ""
    if not gaps:
        return f"{where}: no verdict.{without}"
    mean = sum(gap["mean"] for gap in gaps.values()) / len(gaps)
    worst = max(gaps, key=lambda kind: gaps[kind]["mean"])
    window = max(gaps, key=lambda kind: gaps[kind]["worst"])
    return (
        f"{where}: routing {_counts(gaps.values())}; "
        f"mean {signed(mean)} nats, least lead on {worst} ({signed(gaps[worst]['mean'])}), worst window "
        f"{signed(gaps[window]['worst'], 2)} ({window}).{without}"
    )


def _counts(gaps: Collection[Mapping[str, Any]]) -> str:
    """``wins on 3, cannot be told on 1 and loses on 0 of 4 texts``."""
    said = [outcome_at_equal_cost(gap) for gap in gaps]
    counted = [f"{one} on {said.count(one)}" for one in (Outcome.WINS, Outcome.NO_DIFFERENCE, Outcome.LOSES)]
    return f"{listing(counted)} of {len(said)} texts"


def first_screen(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The three questions at the head of the page, and a sentence for each; ``summary`` has the rest."""
    rows = record["rows"]
    gaps = [(row["kind"], gap) for row in rows if (gap := lead_of(row)) is not None]
    good, doubts = "Not measured: no text has a verdict at equal FLOPs.", []
    if gaps:
        worst, least = max(gaps, key=lambda one: one[1]["mean"])
        good = (
            f"Against {titles(record)} at equal FLOPs it {_counts([gap for _, gap in gaps])} (worst: {worst}, "
            f"{signed(least['mean'])} nats)."
        )
    if len(rows) > len(gaps):
        doubts.append(f"{len(rows) - len(gaps)} of {len(rows)} texts have no verdict")
    doubts.append("each router is one calibration with one seed")
    if any(row.get("windows") for row in rows):
        doubts.append(f"intervals are over {min(row['windows'] for row in rows)} windows a text")
    if record.get("dirty"):
        doubts.append("code with uncommitted changes")
    return [
        ("Is it faster?", "Not measured: `layerroute bench` and `layerroute generate --time` measure it."),
        ("Is it as good?", good),
        ("Can I trust it?", f"Only in part: {'; '.join(doubts)}."),
    ]


def points_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The picture's data: a dot a row that has a verdict, or None where it has none."""
    return [
        {
            "budget": row["budget"],
            "kind": row["left_out"] or row["kind"],
            "home": row["home"],
            "mean": gap.get("mean"),
            "low_95": gap.get("low"),
            "high_95": gap.get("high"),
            "worst": gap.get("worst"),
            "served": row["served"],
        }
        for row in record["rows"]
        for gap in [lead_of(row) or {}]
    ]
