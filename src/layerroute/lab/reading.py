"""Reading off: what a metric would be at a cost that lies between those of two arms.

Arms seldom cost the same. So one is read off at the other's cost, on the straight line between its arms of next lower
and next higher cost: by seed, and by window of text where a metric has it. Metrics gain from cost ever more slowly, so
that the line is worse than what an arm in between would reach: what is read off looks worse than it is. Nothing is
extrapolated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from layerroute.lab.arms import Arm, on_common_seeds
from layerroute.lab.fairness import SAME_BYTES, cache_bytes, same_data, unequal_cost, unlike_treatment
from layerroute.lab.format import percent
from layerroute.outcomes import Side

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A place between two arms.

    Attributes:
        side: of the pair, which is read off here.
        low, high: the arms of lower and of higher cost.
        weight: of ``high``.
    """

    side: Side
    low: Arm
    high: Arm
    weight: float

    def of(self, measure: Callable[[Arm], Mapping[int, Any]]) -> dict[int, Any]:
        """A metric here, by seed: a number each, or one a window, of seeds for which both arms have as many."""
        low, high = measure(self.low), measure(self.high)
        return {
            seed: between(low[seed], high[seed], self.weight)
            for seed in low
            if seed in high and np.shape(low[seed]) == np.shape(high[seed])
        }

    def __str__(self) -> str:
        return f"between {self.low.label} and {self.high.label}, {percent(self.weight, 0)} of the way"


def between(low: Any, high: Any, weight: float) -> Any:
    """The straight line: numbers or arrays of them, ``high`` at a weight of 1."""
    return (1 - weight) * np.asarray(low) + weight * np.asarray(high)


def read_off(
    line: Sequence[T],
    at: T,
    cost: Callable[[T], float | None],
    equal: Callable[[T, T], bool],
    paired: Callable[[T, T, T], Sequence[T]] = lambda *three: three,
) -> tuple[T, T, float] | None:
    """Between which two of ``line`` the cost of ``at`` lies, and the weight of the second; one twice if it costs that.

    None where a cost is not known, or beyond the ends.

    Args:
        equal: whether two cost the same.
        paired: of two of the line and ``at``, what is compared and has the costs that count.
    """
    own = cost(at)
    priced = sorted(((price, one) for one in line if (price := cost(one))), key=lambda pair: pair[0])
    if not own or not priced:
        return None
    same = [(abs(price - own), one) for price, one in priced if equal(one, at)]
    if same:
        _, nearest = min(same, key=lambda pair: pair[0])
        return nearest, nearest, 0.0
    for (_, low), (_, high) in pairwise(priced):
        below, above, there = (cost(one) for one in paired(low, high, at))
        if below is not None and above is not None and there is not None and below < there < above:
            return low, high, (there - below) / (above - below)
    return None


def place(line: Sequence[Arm], at: Arm, side: Side) -> Arm | Reading | None:
    """The arm of ``line`` that costs what ``at`` does, else where to read off; None where neither is possible.

    Arms count that saw the same data and were treated alike. Costs are executed FLOPs, of the runs that are paired; the
    line must also pass within 5 % of the bytes of caches that ``at`` reads, where records have them.
    """
    alike = [arm for arm in line if same_data(arm, at) and not unlike_treatment(arm, at)]
    found = read_off(
        alike, at, lambda arm: arm.executed, lambda *two: not unequal_cost(*two), on_common_seeds
    )
    if found is None:
        return None
    low, high, weight = found
    if low is high:
        return low
    one, other, own = map(cache_bytes, on_common_seeds(low, high, at))
    if one and other and own and abs(between(one, other, weight) - own) > SAME_BYTES * own:
        return None
    return Reading(side=side, low=low, high=high, weight=weight)
