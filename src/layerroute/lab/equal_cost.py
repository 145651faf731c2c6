"""Routing against controls at equal cost: not at the skip that both were asked for, but at the FLOPs executed.

Arms seldom cost the same: at one share skipped, per-token routing executes more FLOPs than static pruning wherever a
site that few tokens skip is run in full. So one of two is read off at the other's cost, between its two arms of next
lower and next higher cost: its loss on every window is interpolated linearly in the cost, and the two are paired window
by window. Losses are convex in the compute that is left, so that a straight line lies above what an arm in between
would reach: reading off routing is to its disadvantage, reading off the control to its advantage.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import numpy as np

from layerroute.lab.arms import Arm, on_common_seeds
from layerroute.lab.fairness import SAME_COST_TEXT, same_cost, unlike_treatment
from layerroute.lab.format import percent
from layerroute.lab.question import Metric
from layerroute.lab.statistics import Difference, WindowLosses, by_window
from layerroute.lab.table import Table, figures, words
from layerroute.lab.tables import difference_fields

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class EqualCost:
    """A routed arm and a control at the cost of one of them.

    Attributes:
        at: the arm whose cost it is; the other one is read off there.
        routed, control: their names.
        low, high: the arms between which the other is read off; the same one where its cost is that of ``at``.
        gap: routed less control; None where they cannot be paired.
    """

    at: Arm
    routed: str
    control: str
    low: Arm
    high: Arm
    gap: Difference | None

    @property
    def outcome(self) -> str:
        """``wins`` or ``loses`` where the reading off did not help it, else ``as read``; or ``cannot be told``."""
        if self.gap is None:
            return "cannot be paired"
        said = said_of(self.gap)
        helped = {"wins": not self.cautious, "loses": self.cautious and self.low is not self.high}
        return f"{said} as read" if helped.get(said) else said

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


def said_of(gap: Difference | Mapping[str, Any] | None) -> str:
    """``wins``, ``loses`` or ``cannot be told``, by the interval of a loss less another's; else ``no verdict``."""
    if gap is None:
        return "no verdict"
    found = gap if isinstance(gap, Mapping) else vars(gap)
    low, high = found["low"], found["high"]
    return "wins" if high < 0 else "loses" if low > 0 else "cannot be told"


def equal_cost(
    routers: Mapping[str, Sequence[Arm]], controls: Mapping[str, Sequence[Arm]]
) -> list[EqualCost]:
    """Every router at the cost of every control's arms, and every control at the cost of every router's arms.

    The cost is the share of the plain model's FLOPs that was executed. Arms whose cost is not between two of the other
    are left out, since nothing is extrapolated, and so are those that were not treated alike. ``routers`` and
    ``controls`` map names to the arms of one kind at different rates.
    """
    found = []
    for (router, routed), (control, arms) in product(routers.items(), controls.items()):
        for at in arms:
            if (place := _place(routed, at)) is not None:
                low, high, losses = place
                name = low.label if low is high else router
                gap = by_window(losses, at.window_losses)
                found.append(EqualCost(at=at, routed=name, control=at.label, low=low, high=high, gap=gap))
        for at in routed:
            # What costs the same was compared above.
            if (place := _place(arms, at)) is not None and place[0] is not place[1]:
                low, high, losses = place
                gap = by_window(at.window_losses, losses)
                found.append(EqualCost(at=at, routed=at.label, control=control, low=low, high=high, gap=gap))
    return found


def as_they_are(routed: Arm, control: Arm) -> EqualCost:
    """Two arms of equal cost, nothing read off."""
    gap = by_window(routed.window_losses, control.window_losses)
    return EqualCost(at=control, routed=routed.label, control=control.label, low=routed, high=routed, gap=gap)


def agreed(entries: Sequence[EqualCost]) -> str:
    """What several readings of one comparison say together: ``wins``, ``loses``, or ``cannot be told``."""
    said = {one.outcome for one in entries} & {"wins", "loses"}
    return said.pop() if len(said) == 1 else "cannot be told"


def deciding(entries: Sequence[EqualCost]) -> EqualCost:
    """The reading whose numbers are told: the first that says what all say together."""
    return next((one for one in entries if one.outcome == agreed(entries)), entries[0])


def read_off(
    line: Sequence[T], cost: Callable[[T], float | None], at: float | None
) -> tuple[T, T, float] | None:
    """Between which two of ``line`` a cost lies, and the weight of the second; one twice where its cost is that.

    None where that is not known, or beyond the ends: nothing is extrapolated.
    """
    priced = sorted(((own, one) for one in line if (own := cost(one)) is not None), key=lambda pair: pair[0])
    if not at or not priced:
        return None
    nearest = min(priced, key=lambda pair: abs(pair[0] - at))
    if same_cost(nearest[0], at):
        return nearest[1], nearest[1], 0.0
    below, above = [pair for pair in priced if pair[0] < at], [pair for pair in priced if pair[0] > at]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    return low[1], high[1], (at - low[0]) / (high[0] - low[0])


def _place(line: Sequence[Arm], at: Arm) -> tuple[Arm, Arm, WindowLosses] | None:
    """Between which arms of ``line`` the cost of ``at`` lies, and the losses there on the straight line."""
    alike = [arm for arm in line if not unlike_treatment(arm, at)]
    found = read_off(alike, lambda arm: arm.executed_share, at.executed_share)
    if found is None:
        return None
    # Again of the runs that are paired: an arm may have others, which cost more or less.
    below, above, there = on_common_seeds(*found[:2], at)
    paired = read_off([below, above], lambda arm: arm.executed_share, there.executed_share)
    if paired is None:
        return None
    low, high = (found[0] if arm is below else found[1] for arm in paired[:2])
    one, other, weight = low.window_losses, high.window_losses, paired[2]
    losses = {
        seed: (1 - weight) * np.asarray(one[seed]) + weight * np.asarray(other[seed])
        for seed in one
        if seed in other and len(one[seed]) == len(other[seed])
    }
    return low, high, losses


def equal_cost_table(found: Sequence[EqualCost], metric: Metric) -> Table | None:
    """One row a comparison; None where there is none."""
    if not found:
        return None
    return Table.of(
        "Table of equal cost",
        "Validation loss of routing less that of controls at equal executed FLOPs",
        [
            words("Routed", lambda one: one.routed),
            words("Against", lambda one: one.control),
            figures("At FLOPs", lambda one: one.at.executed_share, percent),
            words("Read off", lambda one: one.how),
            *difference_fields(lambda one: one.gap, metric).values(),
            words("Routing", lambda one: one.outcome),
        ],
        found,
        notes=[
            f"“Neither” read off: {SAME_COST_TEXT}. Elsewhere one arm gives the cost, and the other is read off there: "
            "its loss on every window lies on the straight line between its arms of next lower and next higher cost. "
            "The interval is that of these losses. Loss is convex in compute. So the line makes the arm that is read "
            "off look worse than it is. “As read” marks what the line alone may have decided. Nothing is "
            "extrapolated. Pairs and intervals are as in table 2."
        ],
    )
