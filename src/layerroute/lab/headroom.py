"""What ``layerroute headroom`` says: choice of tokens by known influence against static pruning, at equal FLOPs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from layerroute.lab.reading import between, read_off
from layerroute.lab.statistics import LEVEL, bootstrap
from layerroute.outcomes import same_cost

WORTH = 0.01
"""Nats below which a gap is not worth a router."""
CAPTION = (
    "By influence: at each layer the tokens skip whose update by that layer is truly smallest. That needs the layer "
    "itself, so no router serves it; it is no upper bound either. Gap: its loss less that of greedy static pruning at "
    "equal executed FLOPs, by formula; static pruning is read off between two numbers of layers, by linear "
    "interpolation of every window's loss, where none is within half a point. Intervals are over windows and hold "
    "for all budgets together (Bonferroni)."
)


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float] | None]:
    """Of each budget, influence less static pruning at equal executed FLOPs: mean, low and high, in nats.

    None where the FLOPs are not known, or not between those of two static arms: nothing is extrapolated.

    Args:
        rows: as ``headroom`` measures them: ``influence``, an arm, and ``static``, arms; each with ``executed``, a
            share of the plain model's FLOPs, and ``window_losses``.
    """
    found: list[dict[str, float] | None] = []
    for row in rows:
        place = read_off(
            row["static"],
            row["influence"],
            lambda arm: arm["executed"],
            lambda one, other: same_cost(one["executed"], other["executed"]),
        )
        if place is None:
            found.append(None)
            continue
        low, high, weight = place
        static = between(low["window_losses"], high["window_losses"], weight)
        differences = np.subtract(row["influence"]["window_losses"], static)
        ends = bootstrap(differences, level=1 - (1 - LEVEL) / len(rows))
        found.append({"mean": float(differences.mean()), "low": float(ends[0]), "high": float(ends[1])})
    return found


def verdict(rows: Sequence[Mapping[str, Any]], pruned: str = "layers") -> str:
    """One or two sentences: whether routing by token can win, at which budget, or that it cannot be told.

    Args:
        rows: with their ``gap``, as ``gaps`` gives it, and their ``budget``.
        pruned: what static pruning takes out.
    """
    judged = [row for row in rows if row["gap"] is not None]
    if not judged:
        return "No verdict: no static pruning executes as many FLOPs as a choice of tokens by influence does."
    won = [row for row in judged if row["gap"]["high"] < 0 and row["gap"]["mean"] < -WORTH]
    best = min(won or judged, key=lambda row: row["gap"]["mean"])
    gap = best["gap"]
    told = (
        f"at a budget of {best['budget']:.0%} it changes the loss by {gap['mean']:+.3f} nats ({gap['low']:+.3f} to "
        f"{gap['high']:+.3f}) against taking {pruned} out for all tokens, with the same skip paths, at equal executed "
        "FLOPs"
    )
    for_all = f" The interval holds for {len(rows)} budgets together." if len(rows) > 1 else ""
    if won:
        return f"Per-token routing can win here. Tokens that skip by known influence: {told}.{for_all}"
    if all(row["gap"]["low"] > -WORTH for row in judged):
        return (
            f"Per-token routing by influence has little to win here, at most {WORTH} nats: {told}.{for_all} What knows "
            "more than influence may win nevertheless."
        )
    return f"Whether per-token routing by influence can win here cannot be told: {told}.{for_all} More text may tell."
