"""What learned routers claim in a question that is asked beside: each against the arms that could refute it."""

from collections.abc import Callable, Mapping, Sequence

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import SAME_BYTES, cache_bytes
from layerroute.lab.format import listing, percent, plural
from layerroute.lab.pairs import Pair, judge
from layerroute.lab.question import Question
from layerroute.lab.statistics import Estimate, t_interval
from layerroute.lab.table import Field, Table, words
from layerroute.lab.tables import pair_fields
from layerroute.outcomes import SAME_COST_TEXT, Outcome

_NAMED = 3
"""As many arms are named in a clause; more are counted."""


def claims(question: Question, arms: Sequence[Arm]) -> list[Pair]:
    """Every learned router whose records have the metric, against each arm that plays one of its controls."""
    known = [arm for arm in arms if question.metric.by_seed(arm)]
    names = [control.name for control in question.controls]
    pairs = [
        (subject, rival, roles)
        for subject in known
        if subject.kind.learned
        for rival in known
        if (roles := tuple(control.name for control in question.controls if control.plays(subject, rival)))
    ]
    pairs.sort(key=lambda pair: (known.index(pair[0]), names.index(pair[2][0])))
    return judge(question, pairs, primary=False)


def of_subject(question: Question, comparison: Comparison) -> list[Pair]:
    """The claims of the arm that the comparison is about."""
    return [pair for pair in claims(question, comparison.arms) if pair.subject is comparison.subject]


def told(pairs: Sequence[Pair], reached: Callable[[Arm, Estimate], str]) -> str:
    """What one subject reached, what is said of it against its rivals, and which controls are missing.

    Empty without pairs.

    Args:
        reached: what the sentence begins with, from the subject and its metric over seeds.
    """
    if not pairs:
        return ""
    subject, question = pairs[0].subject, pairs[0].question
    estimate = t_interval(list(question.metric.by_seed(subject).values()))
    assert estimate is not None
    played = {role for pair in pairs for role in pair.roles}
    missing = [control.name for control in question.controls if control.name not in played]
    text = (
        f"{reached(subject, estimate)} ({plural(estimate.n, 'seed')}); "
        f"it {listing([pair.phrase for pair in pairs])}."
    )
    return f"{text} Not held against {listing(missing, 'or')}: no such arm." if missing else text


def briefly(pairs: Sequence[Pair], verb: str, said: Mapping[Outcome, str], where: str) -> str:
    """What is certain of one subject, in a clause, or that nothing can be told ``where``; empty without pairs.

    Arms that may not be compared are named only where there are no others.

    ``it recalls more than random and less than static`` has the verb ``recalls``; ``said`` holds ``more`` and ``less``.
    """
    found = [
        f"{word} than {listing(labels)}"
        for outcome, word in said.items()
        if (labels := [pair.rival.label for pair in pairs if pair.outcome is outcome])
    ]
    if found or not pairs:
        return f"it {verb} {listing(found)}" if found else ""
    alike = [pair.rival.label for pair in pairs if pair.outcome.comparable]
    rivals = alike or [pair.rival.label for pair in pairs]
    named = listing(rivals, "or") if len(rivals) <= _NAMED else f"any of {len(rivals)} arms"
    verdict = "it cannot be told from" if alike else "there is no verdict against"
    return f"{where} {verdict} {named}"


def claims_table(
    pairs: Sequence[Pair], *, name: str, title: str, more: Sequence[Field[Pair]] = ()
) -> Table | None:
    """Each learned router less each arm that its claim needs; None without pairs.

    Args:
        more: further columns, before the verdict.
    """
    if not pairs:
        return None
    metric = pairs[0].question.metric
    windows = any(pair.difference and pair.difference.windows for pair in pairs)
    first, *rest = pair_fields(metric).values()
    return Table.of(
        name,
        title,
        [
            first,
            words("The second is", lambda pair: listing(pair.roles)),
            *rest,
            *more,
            words("The first", lambda pair: pair.word),
        ],
        pairs,
        notes=[
            f"p by {'test over seeds and windows of text' if windows else 't test over seeds'}, corrected for the "
            "number of comparisons (Holm); intervals are not. Detectable: the smallest true difference that these "
            "seeds would have found with 80% power. A verdict only where both were treated alike and cost the same: "
            f"{SAME_COST_TEXT}{_bytes_too(pairs)}; nothing is read off between arms."
        ],
    )


def _bytes_too(pairs: Sequence[Pair]) -> str:
    there = any(cache_bytes(arm) for pair in pairs for arm in (pair.subject, pair.rival))
    return f", and bytes of caches read within {percent(SAME_BYTES, 0)}" if there else ""
