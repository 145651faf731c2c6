"""What the numbers of one comparison come to: one rule and one set of words, for every table, sentence and record."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

SIGNIFICANT = 0.05
SAME_COST = 0.005
"""Half a point: executed FLOPs, as shares of one model's, that are at most so far apart are equal."""
SAME_COST_TEXT = "executed FLOPs within half a point of share on the same text"
"""The rule in words, for captions."""

Side = Literal["subject", "rival"]


def same_cost(one: float | None, other: float | None) -> bool:
    """Whether two shares of executed FLOPs, measured on the same text, are equal: no verdict where this is False.

    Args:
        one, other: executed forward FLOPs per token, as shares (0.25 is 25 %) of the same model's. None, where they
            were not measured, equals nothing.
    """
    return one is not None and other is not None and abs(one - other) <= SAME_COST + 1e-12


class Outcome(StrEnum):
    """What can be said about one arm against another."""

    WINS = "wins"
    LOSES = "loses"
    WINS_AS_READ = "wins, as read"
    LOSES_AS_READ = "loses, as read"
    NO_DIFFERENCE = "cannot be told"
    NOT_CORRECTED = "cannot be told once corrected"
    ONE_SEED = "one seed: cannot tell"
    UNPAIRED = "no seed in common: cannot tell"
    OTHER_DATA = "different data: not comparable"
    UNALIKE = "no verdict: not treated alike"
    UNEQUAL_COST = "no verdict: unequal cost"
    UNFINISHED = "no completed run: cannot tell"

    @property
    def certain(self) -> bool:
        """Whether the numbers carry a statement about which arm is better."""
        return self in (Outcome.WINS, Outcome.LOSES)

    @property
    def comparable(self) -> bool:
        """Whether the two arms may be compared at all, however little their numbers tell."""
        return self not in (Outcome.OTHER_DATA, Outcome.UNALIKE, Outcome.UNEQUAL_COST, Outcome.UNFINISHED)

    @property
    def plain(self) -> "Outcome":
        """The same without ``as read``."""
        return {Outcome.WINS_AS_READ: Outcome.WINS, Outcome.LOSES_AS_READ: Outcome.LOSES}.get(self, self)


def outcome_of(
    interval: tuple[float | None, float | None] | None,
    *,
    p: float | None = None,
    lower_is_better: bool = True,
    read_off: Side | None = None,
    barred: Outcome | None = None,
) -> Outcome:
    """What a difference says, the subject's metric less the rival's.

    One of the two is better where the whole interval is on one side of 0 (an end at 0 is not), and p is below 5 % where
    there is one. A straight line makes the side that is read off look worse than it is. So what it says against that
    side is only ``as read``, and where p is not below 5 % it says nothing.

    Args:
        interval: low and high end; None in it with one seed, None for it where nothing could be paired.
        p: corrected for the number of comparisons; None: the interval alone decides.
        read_off: which of the two was read off between two arms, if one was.
        barred: why the two may not be compared, if they may not.
    """
    if barred is not None:
        return barred
    if interval is None:
        return Outcome.UNPAIRED
    low, high = interval
    if low is None or high is None:
        return Outcome.ONE_SEED
    if not (low > 0 or high < 0):
        return Outcome.NO_DIFFERENCE
    wins = (high < 0) is lower_is_better
    flattered = read_off == ("rival" if wins else "subject")
    if p is not None and not p < SIGNIFICANT:
        return Outcome.NO_DIFFERENCE if flattered else Outcome.NOT_CORRECTED
    if flattered:
        return Outcome.WINS_AS_READ if wins else Outcome.LOSES_AS_READ
    return Outcome.WINS if wins else Outcome.LOSES


def outcome_at_equal_cost(gap: Mapping[str, Any] | None) -> Outcome:
    """Of a record's ``at_equal_cost``: routed less another arm in nats, or None where routing missed that cost."""
    return Outcome.UNEQUAL_COST if gap is None else outcome_of((gap["low"], gap["high"]))
