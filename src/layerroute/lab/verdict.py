"""The verdict, chosen by the numbers, in words that never claim more than the seeds carry."""

from dataclasses import dataclass, replace
from enum import StrEnum

from layerroute.lab.arms import Arm
from layerroute.lab.crossed import crossed_difference
from layerroute.lab.fairness import data_identity, no_verdict, unequal_cost, unlike_treatment
from layerroute.lab.format import listing, number, plural, plus_minus, signed
from layerroute.lab.statistics import PairedDifference, holm, paired_difference

SIGNIFICANT = 0.05
ENOUGH_SEEDS = 3


class Outcome(StrEnum):
    """What can be said about one arm against another in validation loss."""

    WINS = "wins"
    LOSES = "loses"
    NO_DIFFERENCE = "no difference within noise"
    NOT_CORRECTED = "no difference once corrected"
    ONE_SEED = "one seed: cannot tell"
    UNPAIRED = "no seed in common: cannot tell"
    OTHER_DATA = "different data: not comparable"
    UNALIKE = "no verdict: not treated alike"
    UNEQUAL_COST = "no verdict: unequal cost"
    UNFINISHED = "no completed run: cannot tell"

    @property
    def certain(self) -> bool:
        """Whether the seeds carry a statement about which arm is better."""
        return self in (Outcome.WINS, Outcome.LOSES)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``subject`` against ``rival``: difference in final validation loss (negative: the subject is better).

    ``p_adjusted`` is Holm's correction over the secondary comparisons, and the plain p of the primary one.
    """

    subject: Arm
    rival: Arm
    primary: bool
    difference: PairedDifference
    p_adjusted: float | None
    same_data: bool

    @property
    def outcome(self) -> Outcome:
        """The verdict in one phrase."""
        if not (self.subject.completed and self.rival.completed):
            return Outcome.UNFINISHED
        if not self.same_data:
            return Outcome.OTHER_DATA
        if unlike_treatment(self.subject, self.rival):
            return Outcome.UNALIKE
        if unequal_cost(self.subject, self.rival):
            return Outcome.UNEQUAL_COST
        if self.difference.estimate is None:
            return Outcome.UNPAIRED
        if self.p_adjusted is None:
            return Outcome.ONE_SEED
        if self.p_adjusted >= SIGNIFICANT:
            plain = self.difference.p_value
            return (
                Outcome.NOT_CORRECTED if plain is not None and plain < SIGNIFICANT else Outcome.NO_DIFFERENCE
            )
        return Outcome.WINS if self.difference.estimate.mean < 0 else Outcome.LOSES

    def sentence(self) -> str:
        """The verdict in one or two sentences with its numbers and its own caveat."""
        ours, theirs = self.subject.label, self.rival.label
        estimate, outcome = self.difference.estimate, self.outcome
        if outcome is Outcome.UNFINISHED:
            lacking = [arm.label for arm in (self.subject, self.rival) if not arm.completed]
            return f"{ours} and {theirs} cannot be compared: no run of {listing(lacking)} completed."
        if outcome is Outcome.OTHER_DATA:
            return (
                f"{ours} and {theirs} saw different data or tokenizers, so their losses cannot be compared, "
                "whatever the tables show."
            )
        if outcome in (Outcome.UNALIKE, Outcome.UNEQUAL_COST):
            reasons = listing(no_verdict(self.subject, self.rival))
            seen = "" if estimate is None else f" Their losses differ by {signed(estimate.mean, 4)} nats."
            few = " There is one seed, too." if len(self.difference.seeds) == 1 else ""
            return f"There is no verdict on {ours} against {theirs}: {reasons}.{seen}{few}"
        if estimate is None:
            return (
                f"{ours} and {theirs} have no completed seed in common, so they cannot be compared pair by "
                "pair: run both with the same seeds."
            )
        amount = f"{number(abs(estimate.mean), 4)} nats"
        if outcome is Outcome.ONE_SEED:
            seed = self.difference.seeds[0]
            place = "below" if estimate.mean < 0 else "above" if estimate.mean > 0 else "from"
            return (
                f"With one seed ({seed}) nobody can tell whether {ours} or {theirs} is better: {ours} ended "
                f"{amount} {place} {theirs} in validation loss, and that may be chance. At least "
                f"{ENOUGH_SEEDS} seeds are needed."
            )
        interval = (
            f"{signed(estimate.mean, 4)} nats, 95% interval {signed(estimate.low, 4)} to "
            f"{signed(estimate.high, 4)}, {plural(estimate.n, 'seed')}, paired"
            f"{f', and by {self.difference.documents} windows of text' if self.difference.documents else ''}"
        )
        few = (
            f" Two seeds leave one degree of freedom; {ENOUGH_SEEDS} or more are wanted."
            if estimate.n < ENOUGH_SEEDS
            else ""
        )
        if outcome is Outcome.NO_DIFFERENCE:
            return (
                f"No difference within noise between {ours} and {theirs} in validation loss ({interval}); a "
                f"true difference below about {number(self.difference.detectable, 4)} nats would probably "
                f"have gone unseen.{few}"
            )
        if outcome is Outcome.NOT_CORRECTED:
            return (
                f"{ours} and {theirs} differ by {interval}, which is within noise once the number of "
                f"comparisons is allowed for.{few}"
            )
        verb = "a lower" if outcome is Outcome.WINS else "a higher"
        return f"{ours} ends with {verb} validation loss than {theirs} ({interval}).{few}"


def judge_pairs(primary: tuple[Arm, Arm] | None, secondary: list[tuple[Arm, Arm]]) -> list[Pair]:
    """Compare arms pair by pair, each (subject, rival): the primary comparison first.

    The primary comparison is the one question asked, and is tested at 5 %. All others together are held to 5 % by
    Holm's correction.
    """
    wanted = ([(primary, True)] if primary else []) + [(pair, False) for pair in secondary]
    pairs = []
    for (subject, rival), is_primary in wanted:
        difference = crossed_difference(subject.window_losses, rival.window_losses)
        if difference is None or difference.seeds != _common_seeds(subject, rival):
            difference = paired_difference(subject.loss, rival.loss)
        identities = {data_identity(run) for arm in (subject, rival) for run in arm.completed}
        pairs.append(
            Pair(
                subject=subject,
                rival=rival,
                primary=is_primary,
                difference=difference,
                p_adjusted=difference.p_value,
                same_data=len(identities) <= 1,
            )
        )
    others = [pair for pair in pairs if not pair.primary]
    adjusted = iter(holm([pair.p_adjusted for pair in others]))
    pairs = [pair if pair.primary else replace(pair, p_adjusted=next(adjusted)) for pair in pairs]
    # Pairs without a verdict count in the correction: which they are must not make the others surer.
    return [
        replace(pair, p_adjusted=None) if no_verdict(pair.subject, pair.rival) else pair for pair in pairs
    ]


def _common_seeds(subject: Arm, rival: Arm) -> tuple[int, ...]:
    return tuple(sorted(set(subject.loss) & set(rival.loss)))


def loss_text(arm: Arm) -> str:
    """An arm's final validation loss with its interval."""
    estimate = arm.estimate("metrics", "validation_loss")
    return plus_minus(estimate.mean, estimate.half_width) if estimate else "no completed run"
