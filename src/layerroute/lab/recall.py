"""Recall of every arm, and each learned router against the controls that its claim needs, paired by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from layerroute.lab.arms import Arm, Kind
from layerroute.lab.controls import RATE_TOLERANCE
from layerroute.lab.fairness import SAME_COST_TEXT, no_verdict, unequal_cost
from layerroute.lab.format import MISSING, count, listing, number, percent, plural, points, probability
from layerroute.lab.statistics import Estimate, PairedDifference, holm, paired_difference, t_interval
from layerroute.lab.table import Cell, Column, Row, Table
from layerroute.lab.verdict import SIGNIFICANT


def recall_by_seed(arm: Arm, *, multiple: int = 1) -> dict[int, float]:
    """Share of answers recalled at ``multiple`` of the training length, by seed of the completed runs that have it."""
    found = {}
    for run in arm.completed:
        for point in run.value("recall", "by_length") or ():
            if point["multiple"] == multiple:
                found[run.seed] = float(point["accuracy"])
    return found


def softmax_rate(arm: Arm, routed: float | None) -> float | None:
    """Share of tokens with softmax attention, averaged over the layers after the first.

    A parallel router cannot route the first layer: with it in the mean, a model of two layers that sends every token to
    softmax would stand at one half.
    """
    pattern = list(arm.layer_pattern)
    mixing = pattern[1:] or pattern
    if not mixing or (routed is None and "routed" in mixing):
        return None
    share = {"softmax": 1.0, "gdn": 0.0, "routed": routed or 0.0}
    return sum(share[kind] for kind in mixing) / len(mixing)


@dataclass(frozen=True, kw_only=True)
class RecallPair:
    """A learned router against an arm that its claim needs in ``roles``; the difference is in answers recalled.

    ``p_adjusted`` is Holm's correction over all pairs of the table; None where there is no verdict, and with fewer than
    two common seeds.
    """

    subject: Arm
    rival: Arm
    roles: tuple[str, ...]
    difference: PairedDifference
    p_adjusted: float | None

    @property
    def outcome(self) -> str:
        """``recalls more`` or ``less``, the same ``before correction``, ``no difference within noise``, or why not."""
        if self.reasons:
            return f"no verdict: {listing(self.reasons)}"
        estimate = self.difference.estimate
        if estimate is None or self.p_adjusted is None:
            return "one seed: cannot tell" if estimate else "no seed in common: cannot tell"
        word = "recalls more" if estimate.mean > 0 else "recalls less"
        if self.p_adjusted < SIGNIFICANT:
            return word
        return f"{word}, before correction" if self._alone_significant else "no difference within noise"

    @property
    def reasons(self) -> list[str]:
        """Why there is no verdict on the two as they stand: unequal cost, unlike treatment."""
        return no_verdict(self.subject, self.rival)

    @property
    def _alone_significant(self) -> bool:
        """Whether this comparison, were it the only one, would count: its interval does not reach 0."""
        p = self.difference.p_value
        return p is not None and p < SIGNIFICANT

    def phrase(self) -> str:
        """``more than random (+60.0 points, 95% +50.0 to +70.0)``, for a sentence about the subject."""
        estimate = self.difference.estimate
        if estimate is None:
            return f"cannot be paired with {self.rival.label}"
        amount = f"{points(estimate.mean)} points"
        if self.reasons:
            return f"has no verdict against {self.rival.label} ({amount}; {listing(self.reasons)})"
        if self.p_adjusted is None:
            return f"is {amount} from {self.rival.label} with one seed, which may be chance"
        amount += f", 95% {points(estimate.low)} to {points(estimate.high)}"
        if self.p_adjusted < SIGNIFICANT:
            word = "more" if estimate.mean > 0 else "less"
            return f"recalls {word} than {self.rival.label} ({amount})"
        if self._alone_significant:
            side = "ahead of" if estimate.mean > 0 else "behind"
            corrected = f"p = {probability(self.p_adjusted)} when corrected for the number of comparisons"
            return f"is {side} {self.rival.label} ({amount}), but {corrected}"
        unseen = number(100 * (self.difference.detectable or 0.0), 1)
        return (
            f"cannot be told from {self.rival.label} ({amount}; below about {unseen} points would go unseen)"
        )


def recall_pairs(arms: Sequence[Arm]) -> list[RecallPair]:
    """Every learned router that has recall data, against the arms that its claim needs.

    They are random and periodic at its rate (within 2 points, the same layers), static arms at the FLOPs that it
    executes (within half a point), the same layers with softmax for every token where it routes, all-softmax and
    all-GDN.
    """
    known = [arm for arm in arms if recall_by_seed(arm)]
    pairs = []
    for subject in known:
        if subject.kind is not Kind.DYNAMIC:
            continue
        for rival in known:
            roles = tuple(role for role, fits in _ROLES if fits(subject, rival))
            if roles:
                found = paired_difference(recall_by_seed(subject), recall_by_seed(rival))
                pairs.append(
                    RecallPair(
                        subject=subject,
                        rival=rival,
                        roles=roles,
                        difference=found,
                        p_adjusted=found.p_value,
                    )
                )
    pairs.sort(key=lambda pair: (known.index(pair.subject), _NAMES.index(pair.roles[0])))
    adjusted = holm([pair.p_adjusted for pair in pairs])
    return [
        replace(pair, p_adjusted=None if pair.reasons else p) for pair, p in zip(pairs, adjusted, strict=True)
    ]


def _same_rate(kind: Kind) -> Callable[[Arm, Arm], bool]:
    def fits(subject: Arm, rival: Arm) -> bool:
        ours, theirs = subject.mean("routing", "mean_rate"), rival.mean("routing", "mean_rate")
        alike = ours is not None and theirs is not None and abs(ours - theirs) <= RATE_TOLERANCE
        return rival.kind is kind and rival.layer_pattern == subject.layer_pattern and alike

    return fits


def _same_flops(subject: Arm, rival: Arm) -> bool:
    return rival.kind is Kind.STATIC and not unequal_cost(subject, rival)


def _unrouted(arm: Arm) -> tuple[str, ...]:
    return tuple("softmax" if kind == "routed" else kind for kind in arm.layer_pattern)


_ROLES: tuple[tuple[str, Callable[[Arm, Arm], bool]], ...] = (
    ("random at its rate", _same_rate(Kind.RANDOM)),
    ("periodic at its rate", _same_rate(Kind.PERIODIC)),
    ("static at its FLOPs", _same_flops),
    ("softmax where it routes", lambda subject, rival: rival.layer_pattern == _unrouted(subject)),
    ("all-softmax", lambda subject, rival: rival.kind is Kind.ALL_SOFTMAX),
    ("all-GDN", lambda subject, rival: rival.kind is Kind.ALL_GDN),
)
_NAMES = [role for role, _ in _ROLES]


def recall_sentence(pairs: Sequence[RecallPair], subject: Arm | None) -> str:
    """The answer about ``subject``'s recall in one sentence; empty where it has no pair."""
    own = [pair for pair in pairs if pair.subject is subject]
    if not own or subject is None:
        return ""
    estimate = t_interval(list(recall_by_seed(subject).values()))
    assert estimate is not None
    rate = softmax_rate(subject, subject.mean("routing", "mean_rate"))
    missing = [role for role in _NAMES if role not in {played for pair in own for played in pair.roles}]
    text = (
        f"Recall: {subject.label}, with softmax for {percent(rate)} of the tokens after the first layer, answers "
        f"{_share(estimate)} ({plural(estimate.n, 'seed')}); it {listing([pair.phrase() for pair in own])}."
    )
    return f"{text} Not held against {listing(missing, 'or')}: no such arm." if missing else text


def recall_table(arms: Sequence[Arm]) -> Table | None:
    """Answers recalled by arm, at the length of training and at the longest measured; None without recall data."""
    known = [arm for arm in arms if recall_by_seed(arm)]
    if not known:
        return None
    multiples = {
        int(point["multiple"])
        for arm in known
        for run in arm.completed
        for point in run.value("recall", "by_length") or ()
    }
    longest = max(multiples)
    columns = [
        Column(label="Model"),
        Column(label="Kind"),
        Column(label="Seeds", numeric=True),
        Column(label="Softmax rate", numeric=True),
        Column(label="FLOPs/token, executed", numeric=True),
        Column(label="Recalled", numeric=True),
    ]
    columns += [Column(label=f"Recalled at {longest}×", numeric=True)] if longest > 1 else []
    rows = []
    for arm in known:
        rate = softmax_rate(arm, arm.mean("routing", "mean_rate"))
        cost = arm.mean("flops", "executed_per_token")
        shown = [t_interval(list(recall_by_seed(arm).values()))]
        shown += [t_interval(list(recall_by_seed(arm, multiple=longest).values()))] if longest > 1 else []
        rows.append(
            Row(
                cells=(
                    Cell(arm.label),
                    Cell(str(arm.kind)),
                    Cell(str(len(arm.completed)), len(arm.completed)),
                    Cell(percent(rate), rate),
                    Cell(count(cost), cost),
                    *(Cell(MISSING) if e is None else Cell(_share(e), e.mean) for e in shown),
                )
            )
        )
    chance = known[0].example.value("recall", "chance")
    return Table(
        name="Table of recall",
        title="Answers recalled at the length of training",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(
            f"± is the 95% t interval over seeds. Blind guessing reaches {percent(chance)}. The softmax rate is over "
            "the layers after the first, which no parallel router can route.",
        ),
    )


def recall_differences(pairs: Sequence[RecallPair]) -> Table:
    """Each learned router less each arm that its claim needs, in points of answers recalled."""
    labels = ("Seeds", "Δ recalled", "95% interval", "p", "Detectable")
    rows = []
    for pair in pairs:
        found, estimate = pair.difference, pair.difference.estimate
        interval, mean = MISSING, None if estimate is None else estimate.mean
        if estimate is not None and estimate.half_width is not None:
            interval = f"{points(estimate.low)} to {points(estimate.high)}"
        unseen = found.detectable
        rows.append(
            Row(
                cells=(
                    Cell(f"{pair.subject.label} − {pair.rival.label}"),
                    Cell(listing(pair.roles)),
                    Cell(str(len(found.seeds)), len(found.seeds)),
                    Cell(MISSING if mean is None else points(mean), mean),
                    Cell(interval),
                    Cell(probability(pair.p_adjusted), pair.p_adjusted),
                    Cell(number(None if unseen is None else 100 * unseen, 1), unseen),
                    Cell(pair.outcome),
                )
            )
        )
    return Table(
        name="Table of recall differences",
        title="Differences in answers recalled (percentage points), paired by seed",
        columns=(
            Column(label="Comparison"),
            Column(label="The second is"),
            *(Column(label=label, numeric=True) for label in labels),
            Column(label="The first"),
        ),
        rows=tuple(rows),
        notes=(
            "p by t test over seeds, corrected for the number of comparisons (Holm); intervals are not. Detectable: "
            "the smallest true difference that these seeds would have found with 80% power. A verdict only where both "
            f"were treated alike and cost the same: {SAME_COST_TEXT}; nothing is read off between arms.",
        ),
    )


def _share(estimate: Estimate) -> str:
    half = estimate.half_width
    text = number(100 * estimate.mean, 1)
    return f"{text}%" if half is None else f"{text} ± {number(100 * half, 1)}%"
