"""A learned router against each kind of rival at its own cost: in FLOPs and in bytes of caches at once.

What a router costs depends on where it looks, and nobody knows that before it is trained. So a rival may be there at
several costs, and is read off at the router's on the straight line between the two that lie around it, seed by seed.
Metrics gain from cost ever more slowly, so that the line is worse than what a rival in between would reach: a rival
that is read off looks worse than it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from layerroute.lab.arms import Arm, on_common_seeds
from layerroute.lab.fairness import (
    SAME_BYTES,
    SAME_COST_TEXT,
    cache_bytes,
    same_data,
    unequal_cost,
    unlike_treatment,
)
from layerroute.lab.format import count, percent, plural, probability
from layerroute.lab.question import Outcome, Question
from layerroute.lab.statistics import SIGNIFICANT, Difference, by_seed, holm
from layerroute.lab.table import Field, Table, figures, words
from layerroute.lab.tables import difference_fields


@dataclass(frozen=True, kw_only=True)
class AtCost:
    """A router and rivals of one kind at the router's cost.

    Attributes:
        low, high: the rivals between which is read off; one and the same where its costs are the router's.
        weight: of ``high``.
        difference: in the question's metric, router less rival.
        p_adjusted: corrected for the number of comparisons; None with one seed.
    """

    question: Question
    router: Arm
    low: Arm
    high: Arm
    weight: float
    difference: Difference | None
    p_adjusted: float | None = None

    @property
    def how(self) -> str:
        """What the router is held against."""
        if self.low is self.high:
            return self.low.label
        return f"between {self.low.label} and {self.high.label} ({percent(self.weight, 0)} of the way)"

    @property
    def word(self) -> str:
        """The verdict for a cell."""
        found = self.difference
        if found is None:
            return "no seed in common: cannot tell"
        if self.p_adjusted is None:
            return "one seed: cannot tell"
        if self.p_adjusted >= SIGNIFICANT:
            return "no difference within noise"
        if (found.mean < 0) is not self.question.metric.lower_is_better:
            return self.question.words[Outcome.LOSES]
        won = self.question.words[Outcome.WINS]
        return won if self.low is self.high else f"{won}, as read"


def at_equal_cost(question: Question, arms: Sequence[Arm]) -> list[AtCost]:
    """Every learned router against every kind of rival that is there at its cost, or on both sides of it.

    A kind is arms of the same layers that are the same thing (all static, say). Arms count that were treated as the
    router was and whose records have both costs.
    """
    known = [arm for arm in arms if question.metric.by_seed(arm) and arm.executed and cache_bytes(arm)]
    found = [
        one
        for router in known
        if router.kind.learned
        for family in _families([arm for arm in known if not arm.kind.learned and _alike(router, arm)])
        if (one := _read_off(question, router, family)) is not None
    ]
    p_values = holm([None if one.difference is None else one.difference.p_value for one in found])
    return [replace(one, p_adjusted=p) for one, p in zip(found, p_values, strict=True)]


def _alike(router: Arm, arm: Arm) -> bool:
    return same_data(router, arm) and not unlike_treatment(router, arm)


def _families(arms: Sequence[Arm]) -> Iterator[list[Arm]]:
    families: dict[tuple[str, tuple[str, ...]], list[Arm]] = {}
    for arm in arms:
        families.setdefault((str(arm.kind), arm.layer_pattern), []).append(arm)
    for family in families.values():
        yield sorted(family, key=lambda arm: arm.executed or 0.0)


def _read_off(question: Question, router: Arm, family: Sequence[Arm]) -> AtCost | None:
    measure = question.metric.by_seed
    at_cost = partial(AtCost, question=question, router=router)
    ours = measure(router)
    for arm in family:
        if not unequal_cost(router, arm):
            return at_cost(low=arm, high=arm, weight=0.0, difference=by_seed(ours, measure(arm)))
    for low, high in pairwise(family):
        paired = on_common_seeds(low, high, router)
        below, above, flops = (arm.executed or 0.0 for arm in paired)
        read = cache_bytes(paired[2]) or 0.0
        if not below < flops < above:
            continue
        weight = (flops - below) / (above - below)
        there = (1 - weight) * (cache_bytes(paired[0]) or 0.0) + weight * (cache_bytes(paired[1]) or 0.0)
        if abs(there - read) > SAME_BYTES * read:
            return None
        one, other = measure(low), measure(high)
        theirs = {seed: (1 - weight) * one[seed] + weight * other[seed] for seed in one.keys() & other.keys()}
        return at_cost(low=low, high=high, weight=weight, difference=by_seed(ours, theirs))
    return None


def at_cost_table(
    question: Question, arms: Sequence[Arm], *, name: str, title: str, gain: str
) -> Table | None:
    """One row a router and kind of rival; None where there is none.

    Args:
        gain: what costs buy, as a sentence begins: ``Recall rises``.
    """
    found = at_equal_cost(question, arms)
    if not found:
        return None
    by_name: dict[str, Field[AtCost]] = difference_fields(lambda one: one.difference, question.metric)
    return Table.of(
        name,
        title,
        [
            words("Router", lambda one: one.router.label),
            words("Against", lambda one: one.how),
            words("Seeds", lambda one: plural(len(one.difference.seeds) if one.difference else 0, "seed")),
            figures("At FLOPs/token", lambda one: one.router.executed, count),
            figures("At bytes/token", lambda one: cache_bytes(one.router), count),
            by_name["mean"],
            by_name["interval"],
            figures("p", lambda one: one.p_adjusted, probability),
            words("The router", lambda one: one.word),
        ],
        found,
        notes=[
            f"Equal are {SAME_COST_TEXT}, and bytes of caches that a token reads within {percent(SAME_BYTES, 0)}. A "
            "rival that is there on both sides of the router's cost is read off there, seed by seed, on the straight "
            f"line between its arms, if that line passes within {percent(SAME_BYTES, 0)} of the router's bytes. "
            f"{gain} ever more slowly with cost. So the line makes the rival look worse than it is: “as read” marks "
            "what the line alone may have decided. Nothing is extrapolated. p by t test over seeds, corrected for the "
            "number of rows (Holm)."
        ],
    )
