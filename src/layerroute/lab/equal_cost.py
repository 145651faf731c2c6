"""Routing against controls at equal cost: not at the skip that both were asked for, but at the FLOPs executed.

Arms seldom cost the same: at one share skipped, per-token routing executes more FLOPs than static pruning wherever a
site that few tokens skip is run in full. So one of two is read off at the other's cost, between its two arms of next
lower and next higher cost: its loss on every window is interpolated linearly in the cost, and the two are paired window
by window. Losses are convex in the compute that is left, so that a straight line lies above what an arm in between
would reach: reading off routing is to its disadvantage, reading off the control to its advantage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import SAME_COST_TEXT, same_cost, unlike_treatment
from layerroute.lab.format import MISSING, number, percent, signed
from layerroute.lab.paired import Gap, Losses, gap_between, paired_gap, window_losses
from layerroute.lab.skipping_arms import executed
from layerroute.lab.table import Cell, Column, Row, Table


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
    def how(self) -> str:
        """How the costs were made equal."""
        if self.low is self.high:
            return "neither: equal cost"
        ends = f"{self.low.label} and {self.high.label}"
        return f"{'routing' if self.cautious else 'the control'}, between {ends}"

    @property
    def cautious(self) -> bool:
        """Whether it is routing that was read off, or nothing was: what is said is then no flattery."""
        return self.low is self.high or self.at.label == self.control


def equal_cost(
    routers: Mapping[str, Sequence[Arm]], controls: Mapping[str, Sequence[Arm]]
) -> list[EqualCost]:
    """Every router at the cost of every control's arms, and every control at the cost of every router's arms.

    The cost is the share of the plain model's FLOPs that was executed. Arms whose cost is not between two of the other
    are left out, since nothing is extrapolated, and so are those that were not treated alike. ``routers`` and
    ``controls`` map names to the arms of one kind at different rates.
    """
    found = []
    for router, routed in routers.items():
        for control, arms in controls.items():
            for at in arms:
                if (place := _place(routed, at)) is not None:
                    gap = gap_between(_between(*place), window_losses(at))
                    found.append(_made(at, router, at.label, place, gap))
            for at in routed:
                place = _place(arms, at)
                # What costs the same was compared above.
                if place is not None and place[0] is not place[1]:
                    gap = gap_between(window_losses(at), _between(*place))
                    found.append(_made(at, at.label, control, place, gap))
    return found


def as_they_are(routed: Arm, control: Arm) -> EqualCost:
    """Two arms of equal cost, nothing read off."""
    gap = paired_gap(routed, control)
    return EqualCost(
        at=control, routed=routed.label, control=control.label, low=routed, high=routed, weight=0.0, gap=gap
    )


def outcome_of(entries: Sequence[EqualCost]) -> str:
    """What several readings of one comparison say together: ``wins``, ``loses``, or ``cannot be told``."""
    said = {one.outcome for one in entries} & {"wins", "loses"}
    return said.pop() if len(said) == 1 else "cannot be told"


def _made(at: Arm, routed: str, control: str, place: tuple[Arm, Arm, float], gap: Gap | None) -> EqualCost:
    low, high, weight = place
    if low is high and at.label == control:
        routed = low.label
    return EqualCost(at=at, routed=routed, control=control, low=low, high=high, weight=weight, gap=gap)


def _place(line: Sequence[Arm], at: Arm) -> tuple[Arm, Arm, float] | None:
    own = executed(at)
    alike = [arm for arm in line if not unlike_treatment(arm, at)]
    priced = sorted(((c, arm) for arm in alike if (c := executed(arm)) is not None), key=lambda pair: pair[0])
    if not own or not priced:
        return None
    nearest = min(priced, key=lambda pair: abs(pair[0] - own))
    if same_cost(nearest[0], own):
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


def equal_cost_table(found: Sequence[EqualCost]) -> Table | None:
    """One row a comparison; None where there is none."""
    if not found:
        return None
    rows = []
    for one in found:
        gap, at = one.gap, executed(one.at)
        shown = [Cell(one.routed), Cell(one.control), Cell(percent(at), at), Cell(one.how)]
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
        title="Validation loss of routing less that of controls at equal executed FLOPs",
        columns=(
            Column(label="Routed"),
            Column(label="Against"),
            Column(label="At FLOPs", numeric=True),
            Column(label="Read off"),
            *(Column(label=label, numeric=True) for label in numeric),
            Column(label="Routing"),
        ),
        rows=tuple(rows),
        notes=(
            f"“Neither” read off: {SAME_COST_TEXT}. Else the cost is that of one of the two, and the other is read off "
            "between its arms of next lower and next higher cost, by linear interpolation of its loss on every window; "
            "the interval is that of the interpolated losses. Losses are convex in compute, so that reading off "
            "routing is to its disadvantage, reading off the control to its advantage: what the line alone may "
            "have decided is marked “as read”. Nothing is extrapolated. Paired, and intervals, as in table 2.",
        ),
    )
