"""Two arms held against each other: what the numbers say, in words that never claim more than they carry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import no_verdict, same_data, unequal_cost, unlike_treatment
from layerroute.lab.format import MISSING, listing, plural, probability
from layerroute.lab.question import SENTENCES, Outcome, Question
from layerroute.lab.statistics import (
    SIGNIFICANT,
    Difference,
    by_seed,
    by_seed_and_window,
    by_window,
    holm,
)

ENOUGH_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``subject`` against ``rival``: the difference in the question's metric, subject less rival.

    Attributes:
        p_adjusted: Holm's correction over the comparisons that the question corrects together, the plain p of others;
            None where there is no verdict.
        roles: what the rival is to the subject.
    """

    question: Question
    subject: Arm
    rival: Arm
    difference: Difference | None
    p_adjusted: float | None = None
    primary: bool = False
    roles: tuple[str, ...] = ()

    @property
    def ahead(self) -> bool:
        """Whether the difference is in favour of the subject."""
        return (
            self.difference is not None and (self.difference.mean < 0) is self.question.metric.lower_is_better
        )

    @cached_property
    def outcome(self) -> Outcome:
        """The verdict."""
        found = self.difference
        if not (self.subject.completed and self.rival.completed):
            return Outcome.UNFINISHED
        if not same_data(self.subject, self.rival):
            return Outcome.OTHER_DATA
        if unlike_treatment(self.subject, self.rival):
            return Outcome.UNALIKE
        if unequal_cost(self.subject, self.rival):
            return Outcome.UNEQUAL_COST
        return outcome_of(found, self.p_adjusted, self.ahead)

    @property
    def word(self) -> str:
        """The verdict for a cell."""
        return self.question.words.get(self.outcome, str(self.outcome)).format_map(self.facts)

    @property
    def sentence(self) -> str:
        """The verdict in one or two sentences with its numbers and its own caveat."""
        return SENTENCES[self.outcome].format_map(self.facts)

    @property
    def phrase(self) -> str:
        """The verdict as what a sentence says of the subject."""
        return self.question.phrases[self.outcome].format_map(self.facts)

    @cached_property
    def facts(self) -> Mapping[str, str]:
        """What stands in the braces of the question's words."""
        metric, found = self.question.metric, self.difference
        ours, theirs = self.subject.label, self.rival.label
        facts = {
            "first": ours,
            "second": theirs,
            "metric": metric.label,
            "better": "lower" if metric.lower_is_better else "higher",
            "worse": "higher" if metric.lower_is_better else "lower",
            "reasons": listing(no_verdict(self.subject, self.rival)),
            "unlike": listing(
                [
                    *unlike_treatment(self.subject, self.rival),
                    *(["unequal FLOPs"] if unequal_cost(self.subject, self.rival) else []),
                ]
            ),
            "lacking": listing([arm.label for arm in (self.subject, self.rival) if not arm.completed]),
            "why": why_unpaired(self.question, self.subject, self.rival),
            "enough": str(ENOUGH_SEEDS),
            "p": probability(self.p_adjusted),
            "side": "ahead of" if self.ahead else "behind",
            "more": "more" if found is not None and found.mean > 0 else "less",
            "mean": MISSING,
            "seen": "",
            "alone": "",
        }
        if found is None:
            return facts
        seeds, mean = len(found.seeds), f"{metric.show(found.mean)}{metric.unit}"
        low, high = metric.show(found.low), metric.show(found.high)
        windows = f", and by {found.windows} windows of text" if found.windows else ""
        return facts | {
            "mean": mean,
            "size": f"{metric.size(abs(found.mean))}{metric.unit}",
            "amount": f"{mean}, 95% {low} to {high}",
            "interval": f"{mean}, 95% interval {low} to {high}, {plural(seeds, 'seed')}, paired{windows}",
            "detectable": f"{metric.size(found.detectable)}{metric.unit}",
            "least": metric.size(found.detectable),
            "seed": str(found.seeds[0]),
            "place": "below" if found.mean < 0 else "above" if found.mean > 0 else "from",
            "seen": f" Their losses differ by {mean}.",
            "alone": " There is one seed, too." if seeds == 1 else "",
            "few": f" Two seeds leave one degree of freedom; use {ENOUGH_SEEDS} or more."
            if seeds < ENOUGH_SEEDS
            else "",
        }


def outcome_of(found: Difference | None, p_adjusted: float | None, ahead: bool) -> Outcome:
    """What a difference says where nothing forbids a verdict; without p values its interval decides."""
    if found is None:
        return Outcome.UNPAIRED
    if found.low is None or found.high is None:
        return Outcome.ONE_SEED
    if p_adjusted is None:
        certain = alone = found.low > 0 or found.high < 0
    else:
        certain = p_adjusted < SIGNIFICANT
        alone = found.p_value is not None and found.p_value < SIGNIFICANT
    if not certain:
        return Outcome.NOT_CORRECTED if alone else Outcome.NO_DIFFERENCE
    return Outcome.WINS if ahead else Outcome.LOSES


def difference(question: Question, subject: Arm, rival: Arm) -> Difference | None:
    """How far two arms are apart in the metric: by seed and window where both are recorded for all common seeds."""
    metric = question.metric
    ours, theirs = (metric.by_window(arm) if metric.by_window else {} for arm in (subject, rival))
    if question.text_alone:
        return by_window(ours, theirs) if same_data(subject, rival) else None
    alone = by_seed(metric.by_seed(subject), metric.by_seed(rival))
    crossed = by_seed_and_window(ours, theirs)
    return crossed if crossed is not None and alone is not None and crossed.seeds == alone.seeds else alone


def judge(question: Question, pairs: Sequence[tuple[Arm, Arm, tuple[str, ...]]], primary: bool) -> list[Pair]:
    """Compare arms pair by pair, each (subject, rival, roles).

    The primary comparison, which is the first where ``primary`` says so, is the one question asked, and is tested at
    5 %. Others are held to 5 % together where the question corrects them.
    """
    found = [
        Pair(
            question=question,
            subject=subject,
            rival=rival,
            difference=(apart := difference(question, subject, rival)),
            p_adjusted=None if apart is None else apart.p_value,
            primary=primary and index == 0,
            roles=roles,
        )
        for index, (subject, rival, roles) in enumerate(pairs)
    ]
    if question.correction != "none":
        others = [index for index, pair in enumerate(found) if not pair.primary]
        for index, p in zip(others, holm([found[index].p_adjusted for index in others]), strict=True):
            found[index] = replace(found[index], p_adjusted=p)
    # Pairs without a verdict count in the correction: which they are must not make the others surer.
    return [replace(one, p_adjusted=None) if no_verdict(one.subject, one.rival) else one for one in found]


def why_unpaired(question: Question, subject: Arm, rival: Arm) -> str:
    """Why two arms cannot be paired by window, in a few words; empty where windows are not asked for."""
    metric = question.metric
    if not question.text_alone or metric.by_window is None:
        return ""
    ours, theirs = metric.by_window(subject), metric.by_window(rival)
    lacking = [arm.label for arm, losses in ((subject, ours), (rival, theirs)) if not losses]
    if lacking:
        return f"no losses by window of {listing(lacking)}"
    if not set(ours) & set(theirs):
        seeds = (listing([str(seed) for seed in sorted(losses)]) for losses in (ours, theirs))
        return f"no seed in common ({' against '.join(seeds)})"
    counts = ("/".join(map(str, sorted({len(x) for x in losses.values()}))) for losses in (ours, theirs))
    return f"not the same windows of text ({' against '.join(counts)})"
