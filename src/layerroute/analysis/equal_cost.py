"""Routing against controls at equal cost: not at the skip that both were asked for, but at what that really cost.

Arms seldom cost the same: at one share skipped, per-token routing executes more FLOPs than static pruning wherever a
site that few tokens skip is run in full. So one of two is read off at the other's cost, between its two arms of next
lower and next higher cost: its loss on every window is interpolated linearly in the cost, and the two are paired window
by window. Losses are convex in the compute that is left, so that a straight line lies above what an arm in between
would reach: reading off routing is to its disadvantage, reading off the control to its advantage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerroute.analysis.arms import Arm
from layerroute.analysis.format import MISSING, number, percent, signed
from layerroute.analysis.paired import Gap, Losses, gap_between, window_losses
from layerroute.analysis.table import Cell, Column, Row, Table

Cost = Callable[[Arm], float | None]

SAME_COST = 0.002
"""Costs within this share of each other are equal: nothing is interpolated."""


@dataclass(frozen=True, kw_only=True)
class EqualCost:
    """A routed arm and a control at the cost of one of them.

    Attributes:
        at: the arm whose cost it is; the other one is read off there.
        routed, control: their names.
        low, high: the arms between which the other is read off; the same one where its cost is that of ``at``.
        weight: of ``high``.
        gap: routed less control; None where they cannot be paired.
    """

    at: Arm
    routed: str
    control: str
    low: Arm
    high: Arm
    weight: float
    gap: Gap | None

    @property
    def outcome(self) -> str:
        """``wins`` or ``loses`` where the reading off did not help it, else ``as read``; or ``cannot be told``."""
        if self.gap is None:
            return "cannot be paired"
        helped = {"wins": not self.cautious, "loses": self.cautious and self.low is not self.high}
        return f"{self.gap.outcome} as read" if helped.get(self.gap.outcome) else self.gap.outcome

    @property
    def cautious(self) -> bool:
        """Whether it is routing that was read off, or nothing was: what is said is then no flattery."""
        return self.low is self.high or self.at.label == self.control


def equal_cost(
    routers: Mapping[str, Sequence[Arm]], controls: Mapping[str, Sequence[Arm]], cost: Cost
) -> list[EqualCost]:
    """Every router at the cost of every control's arms, and every control at the cost of every router's arms.

    Arms whose cost is not between two of the other are left out: nothing is extrapolated. ``routers`` and ``controls``
    map names to the arms of one kind at different rates.
    """
    found = []
    for router, routed in routers.items():
        for control, arms in controls.items():
            for at in arms:
                if (place := _place(routed, at, cost)) is not None:
                    gap = gap_between(_between(*place), window_losses(at))
                    found.append(_made(at, router, at.label, place, gap))
            for at in routed:
                place = _place(arms, at, cost)
                # What costs the same was compared above.
                if place is not None and place[0] is not place[1]:
                    gap = gap_between(window_losses(at), _between(*place))
                    found.append(_made(at, at.label, control, place, gap))
    return found


def _made(at: Arm, routed: str, control: str, place: tuple[Arm, Arm, float], gap: Gap | None) -> EqualCost:
    low, high, weight = place
    if low is high and at.label == control:
        routed = low.label
    return EqualCost(at=at, routed=routed, control=control, low=low, high=high, weight=weight, gap=gap)


def _place(line: Sequence[Arm], at: Arm, cost: Cost) -> tuple[Arm, Arm, float] | None:
    own = cost(at)
    priced = sorted(((c, arm) for arm in line if (c := cost(arm)) is not None), key=lambda pair: pair[0])
    if not own or not priced:
        return None
    nearest = min(priced, key=lambda pair: abs(pair[0] - own))
    if abs(nearest[0] / own - 1) <= SAME_COST:
        return nearest[1], nearest[1], 0.0
    below = [pair for pair in priced if pair[0] < own]
    above = [pair for pair in priced if pair[0] > own]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    return low[1], high[1], (own - low[0]) / (high[0] - low[0])


def _between(low: Arm, high: Arm, weight: float) -> Losses:
    one, other = window_losses(low), window_losses(high)
    return {
        seed: (1 - weight) * one[seed] + np.multiply(weight, other[seed])
        for seed in one
        if seed in other and len(one[seed]) == len(other[seed])
    }


def equal_cost_table(found: Sequence[tuple[str, Cost, EqualCost]], notes: Sequence[str]) -> Table | None:
    """One row a comparison, each with what the cost is called and its measure; None where there is none."""
    if not found:
        return None
    rows = []
    for word, cost, one in found:
        gap, at = one.gap, cost(one.at)
        if one.low is one.high:
            read = "neither: equal cost"
        else:
            ends = f"{one.low.label} and {one.high.label}"
            read = f"{'routing' if one.cautious else 'the control'}, between {ends}"
        shown = [Cell(one.routed), Cell(one.control), Cell(_told(at, word), at), Cell(read)]
        if gap is None:
            shown += [*[Cell(MISSING)] * 3, Cell(one.outcome)]
        else:
            shown += [
                Cell(signed(gap.mean), gap.mean),
                Cell(f"{signed(gap.low)} to {signed(gap.high)}"),
                Cell(number(gap.detectable), gap.detectable),
                Cell(one.outcome),
            ]
        rows.append(Row(cells=tuple(shown)))
    numeric = ("Δ val loss", "95% interval", "Detectable")
    return Table(
        name="Table of equal cost",
        title="Validation loss of routing less that of controls at the same cost",
        columns=(
            Column(label="Routed"),
            Column(label="Against"),
            Column(label="At equal", numeric=True),
            Column(label="Read off"),
            *(Column(label=label, numeric=True) for label in numeric),
            Column(label="Routing"),
        ),
        rows=tuple(rows),
        notes=(
            "The cost is that of one of the two; the other is read off between its arms of next lower and next higher "
            "cost, by linear interpolation of its loss on every window. Losses are convex in compute, so that reading "
            "off routing is to its disadvantage, reading off the control to its advantage: what the line alone may "
            "have decided is marked “as read”. Nothing is extrapolated. Paired, and intervals, as in table 2.",
            *notes,
        ),
    )


def _told(value: float | None, word: str) -> str:
    return f"{number(value, 1)} s" if word == "time" else f"{percent(value)} {word}"
