"""Two arms held against each other: what the numbers say, in words that never claim more than they carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import no_verdict, same_data, unequal_cost, unlike_treatment
from layerroute.lab.format import MISSING, listing, plural, probability
from layerroute.lab.question import SENTENCES, Question
from layerroute.lab.reading import Reading
from layerroute.lab.statistics import Difference, by_seed, by_seed_and_window, by_window, holm
from layerroute.outcomes import Outcome, Side, outcome_of

ENOUGH_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``subject`` against ``rival`` at one cost: the difference in the question's metric, subject less rival.

    Attributes:
        p_adjusted: Holm's correction over the comparisons that the question corrects together, the plain p of others;
            None where there is no verdict.
        roles: what the rival is to the subject.
        reading: where one of the two is read off, at the cost of the other; it then stands for its arms of all costs.
    """

    question: Question
    subject: Arm
    rival: Arm
    difference: Difference | None
    p_adjusted: float | None = None
    primary: bool = False
    roles: tuple[str, ...] = ()
    reading: Reading | None = None

    def ends(self, side: Side) -> tuple[Arm, ...]:
        """The arm of a side, or the two between which it is read off."""
        if self.reading is not None and self.reading.side == side:
            return self.reading.low, self.reading.high
        return (self.subject if side == "subject" else self.rival,)

    @property
    def at(self) -> Arm:
        """The arm whose cost it is: the one that is not read off, and the subject where neither is."""
        return self.rival if self.reading is not None and self.reading.side == "subject" else self.subject

    @property
    def how(self) -> str:
        """How the costs were made equal."""
        if self.reading is None:
            return "neither: equal cost"
        return f"{'routing' if self.reading.side == 'subject' else 'the rival'}, {self.reading}"

    @property
    def ahead(self) -> bool:
        """Whether the difference is in favour of the subject."""
        return (
            self.difference is not None and (self.difference.mean < 0) is self.question.metric.lower_is_better
        )

    @cached_property
    def outcome(self) -> Outcome:
        """The verdict."""
        return outcome_of(
            None if self.difference is None else self.difference.interval,
            p=self.p_adjusted,
            lower_is_better=self.question.metric.lower_is_better,
            read_off=None if self.reading is None else self.reading.side,
            barred=None if self.reading else self._barred(),
        )

    def _barred(self) -> Outcome | None:
        if not (self.subject.completed and self.rival.completed):
            return Outcome.UNFINISHED
        if not same_data(self.subject, self.rival):
            return Outcome.OTHER_DATA
        if unlike_treatment(self.subject, self.rival):
            return Outcome.UNALIKE
        return Outcome.UNEQUAL_COST if unequal_cost(self.subject, self.rival) else None

    @property
    def word(self) -> str:
        """The verdict for a cell."""
        plain = self.outcome.plain
        word = self.question.words.get(plain, str(plain)).format_map(self.facts)
        return word if plain is self.outcome else f"{word}, as read"

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
            "why": _why_unpaired(self),
            "enough": str(ENOUGH_SEEDS),
            "p": probability(self.p_adjusted),
            "side": "ahead of" if self.ahead else "behind",
            "more": "more" if found is not None and found.mean > 0 else "less",
            "mean": MISSING,
            "amount": "not paired",
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
            "ends": f"95% {low} to {high}",
            "amount": f"{mean}, 95% {low} to {high}{f'; read off {self.how}' if self.reading else ''}",
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


def difference(
    question: Question, subject: Arm, rival: Arm, reading: Reading | None = None
) -> Difference | None:
    """How far two arms are apart in the metric: by seed and window where both are recorded for all common seeds."""
    metric = question.metric
    ours, theirs = _sides(metric.by_window, subject, rival, reading) if metric.by_window else ({}, {})
    if question.text_alone:
        return by_window(ours, theirs) if same_data(subject, rival) else None
    alone = by_seed(*_sides(metric.by_seed, subject, rival, reading))
    crossed = by_seed_and_window(ours, theirs)
    return crossed if crossed is not None and alone is not None and crossed.seeds == alone.seeds else alone


def _sides(
    measure: Callable[[Arm], Mapping[int, Any]], subject: Arm, rival: Arm, reading: Reading | None
) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """A metric of both, of one of them where it is read off."""
    if reading is None:
        return measure(subject), measure(rival)
    read = reading.of(measure)
    return (read, measure(rival)) if reading.side == "subject" else (measure(subject), read)


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
            difference=difference(question, subject, rival),
            primary=primary and index == 0,
            roles=roles,
        )
        for index, (subject, rival, roles) in enumerate(pairs)
    ]
    found = corrected(question, found)
    # Pairs without a verdict count in the correction: which they are must not make the others surer.
    return [replace(one, p_adjusted=None) if no_verdict(one.subject, one.rival) else one for one in found]


def corrected(question: Question, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs with their p values, of those besides the primary one corrected for their number where the question asks.

    Without p values, which windows of one seed do not have, the interval alone decides.
    """
    p_values = [None if one.difference is None else one.difference.p_value for one in pairs]
    if question.correction != "none":
        others = [index for index, pair in enumerate(pairs) if not pair.primary]
        for index, p in zip(others, holm([p_values[index] for index in others]), strict=True):
            p_values[index] = p
    return [replace(one, p_adjusted=p) for one, p in zip(pairs, p_values, strict=True)]


def agreed(readings: Sequence[Pair]) -> Outcome:
    """What several readings of one comparison say: what one says and all others bear out, else it cannot be told."""
    said = {one.outcome for one in readings}
    for outcome in (Outcome.WINS, Outcome.LOSES):
        if outcome in said and {one.plain for one in said} == {outcome}:
            return outcome
    return Outcome.NO_DIFFERENCE


def deciding(readings: Sequence[Pair]) -> Pair:
    """The reading whose numbers are told: the first that says what all say together, else the first that is open."""
    wanted = agreed(readings)
    ranked = sorted(readings, key=lambda one: (one.outcome is not wanted, one.outcome.certain))
    return ranked[0]


def _why_unpaired(pair: Pair) -> str:
    """Why two arms cannot be paired by window, in a few words; empty where windows are not asked for."""
    metric = pair.question.metric
    if not pair.question.text_alone or metric.by_window is None:
        return ""
    ours, theirs = _sides(metric.by_window, pair.subject, pair.rival, pair.reading)
    lacking = [arm.label for arm, losses in ((pair.subject, ours), (pair.rival, theirs)) if not losses]
    if lacking:
        return f"no losses by window of {listing(lacking)}"
    if not set(ours) & set(theirs):
        seeds = (listing([str(seed) for seed in sorted(losses)]) for losses in (ours, theirs))
        return f"no seed in common ({' against '.join(seeds)})"
    counts = ("/".join(map(str, sorted({len(x) for x in losses.values()}))) for losses in (ours, theirs))
    return f"not the same windows of text ({' against '.join(counts)})"
