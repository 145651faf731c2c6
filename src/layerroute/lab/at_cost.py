"""Routers against rivals at equal cost: not at the rate that both were asked for, but at what was executed.

What a router costs depends on where it looks, and nobody knows that before it is trained. So arms that do not cost the
same are read off at each other's cost (`layerroute.lab.reading`), and the two are paired there.
"""

from collections.abc import Sequence
from itertools import product

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import SAME_BYTES, cache_bytes
from layerroute.lab.format import count, percent
from layerroute.lab.pairs import Pair, corrected, difference
from layerroute.lab.question import Question
from layerroute.lab.reading import Reading, place
from layerroute.lab.table import Field, Table, figures, words
from layerroute.lab.tables import pair_fields
from layerroute.outcomes import SAME_COST_TEXT


def at_equal_cost(
    question: Question, routers: Sequence[Sequence[Arm]], rivals: Sequence[Sequence[Arm]]
) -> list[Pair]:
    """Every router at the cost of every rival's arms, and every rival at the cost of every router's arms.

    ``routers`` and ``rivals`` hold arms of one kind at several costs each; a kind is named by its shortest label.
    """
    found = []
    for ours, theirs in product(routers, rivals):
        router, rival = (min(arms, key=lambda arm: (len(arm.label), arm.label)) for arms in (ours, theirs))
        for at in theirs:
            where = place(ours, at, "subject")
            if where is not None:
                found.append(_pair(question, where if isinstance(where, Arm) else router, at, where))
        for at in ours:
            # What costs the same was compared above.
            if isinstance(where := place(theirs, at, "rival"), Reading):
                found.append(_pair(question, at, rival, where))
    return corrected(question, found)


def _pair(question: Question, subject: Arm, rival: Arm, where: Arm | Reading) -> Pair:
    reading = where if isinstance(where, Reading) else None
    apart = difference(question, subject, rival, reading)
    return Pair(question=question, subject=subject, rival=rival, difference=apart, reading=reading)


def by_kind(question: Question, arms: Sequence[Arm]) -> list[Pair]:
    """Every learned router against every kind of rival that is there at its cost, or on both sides of it.

    A kind is arms of the same layers that are the same thing (all static, say). Arms count whose records have the
    metric, executed FLOPs, and bytes of caches.
    """
    known = [arm for arm in arms if question.metric.by_seed(arm) and arm.executed and cache_bytes(arm)]
    kinds: dict[tuple[str, tuple[str, ...]], list[Arm]] = {}
    for arm in known:
        if not arm.kind.learned:
            kinds.setdefault((str(arm.kind), arm.layer_pattern), []).append(arm)
    return at_equal_cost(question, [[arm] for arm in known if arm.kind.learned], list(kinds.values()))


def at_cost_table(found: Sequence[Pair], *, name: str, title: str, gain: str) -> Table | None:
    """One row a comparison; None where there is none.

    Args:
        gain: what costs buy, as a sentence begins: ``Recall rises``.
    """
    if not found:
        return None
    by_name = pair_fields(found[0].question.metric)
    share: Field[Pair] = figures("At FLOPs", lambda one: one.at.executed_share, percent)
    flops: Field[Pair] = figures("At FLOPs/token", lambda one: one.at.executed, count)
    read: Field[Pair] = figures("At bytes/token", lambda one: cache_bytes(one.at), count)
    same_bytes = f", and bytes of caches that a token reads within {percent(SAME_BYTES, 0)}"
    told = any(cache_bytes(one.at) for one in found)
    return Table.of(
        name,
        title,
        [
            words("Router", lambda one: one.subject.label),
            words("Against", lambda one: one.rival.label),
            words("Read off", lambda one: one.how),
            by_name["seeds"],
            share if all(one.at.executed_share for one in found) else flops,
            *([read] if told else []),
            by_name["mean"],
            by_name["interval"],
            by_name["p"],
            by_name["detectable"],
            words("The router", lambda one: one.word),
        ],
        found,
        notes=[
            f"Equal are {SAME_COST_TEXT}{same_bytes if told else ''}. Elsewhere one arm gives the cost, and the other "
            "is read off there, seed by seed and window by window, on the straight line between its arms of next lower "
            f"and next higher cost{', if it passes as near to the bytes' if told else ''}. {gain} ever more slowly "
            "with cost. So the line makes what is read off look worse than it is: “as read” marks what the line alone "
            "may have decided. Nothing is extrapolated. Pairs and intervals are as in the table of differences"
            f"{'.' if found[0].question.correction == 'none' else ', p is corrected for the number of rows (Holm).'}"
        ],
    )
