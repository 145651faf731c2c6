"""When two arms may be held against each other: equal cost, and equal treatment. No verdict where either is lacking."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from layerroute.lab.arms import Arm, arm_named, on_common_seeds
from layerroute.lab.format import count, learning_rate, listing, path_name, percent, signed_percent
from layerroute.lab.runs import Run
from layerroute.outcomes import same_cost

SAME_BYTES = 0.05
"""Bytes of caches read per token that are at most so far apart, as a share, are equal."""
PARAMETER_TOLERANCE = 0.01
RATE_TOLERANCE = 0.02
NOISY = 1.15
"""Times of equal work that are further apart than this say more of the machine's other work than of the arms."""


def relative(value: float | None, reference: float | None) -> float | None:
    """``value / reference − 1``; None where either is missing or the reference is 0."""
    return None if value is None or not reference else value / reference - 1


def cost_shares(subject: Arm, rival: Arm) -> tuple[float | None, float | None]:
    """Executed forward FLOPs per token as shares, over common seeds; None where they were not counted.

    Of each arm's plain model where both records have it, else of the dearer arm's.
    """
    subject, rival = on_common_seeds(subject, rival)
    costs, bases = (
        [arm.mean("flops", key) for arm in (subject, rival)]
        for key in ("executed_per_token", "base_per_token")
    )
    if not all(bases):
        bases = [max((cost for cost in costs if cost is not None), default=None)] * 2
    ours, theirs = (
        None if cost is None or not base else cost / base for cost, base in zip(costs, bases, strict=True)
    )
    return ours, theirs


def cache_bytes(arm: Arm) -> float | None:
    """Bytes of its caches that a token reads in inference; None where the records do not have them."""
    return arm.mean("cache", "read_per_token")


def unequal_cost(subject: Arm, rival: Arm) -> list[str]:
    """What keeps two arms from equal cost, as short phrases: executed FLOPs, and bytes read where both records tell.

    Of the runs that are paired: an arm may have others, which cost more or less.
    """
    subject, rival = on_common_seeds(subject, rival)
    phrases = _unequal_flops(subject, rival)
    gap = relative(cache_bytes(subject), cache_bytes(rival))
    if gap is not None and abs(gap) > SAME_BYTES:
        phrases.append(f"{signed_percent(gap)} bytes of caches read per token")
    return phrases


def _unequal_flops(subject: Arm, rival: Arm) -> list[str]:
    ours, theirs = cost_shares(subject, rival)
    if same_cost(ours, theirs):
        return []
    if ours is None or theirs is None:
        lacking = [arm.label for arm, share in ((subject, ours), (rival, theirs)) if share is None]
        return [f"executed FLOPs of {listing(lacking)} not counted"]
    if subject.mean("flops", "base_per_token") and rival.mean("flops", "base_per_token"):
        return [f"{percent(ours)} against {percent(theirs)} of the plain model's executed FLOPs"]
    return [f"{signed_percent(relative(ours, theirs))} executed FLOPs per token"]


def unlike_treatment(subject: Arm, rival: Arm) -> list[str]:
    """What was done with one arm and not with the other, as short phrases.

    Steps, tokens, context, validation windows, base model, precision, adapters, weight decay, learning rate, and the
    loss for which schedules wait. The rates of runs that studies made may differ: a study finds them by one rule for
    all its arms.
    """
    phrases = _apart(
        subject,
        rival,
        ("steps", ("metrics", "steps")),
        ("tokens seen", ("tokens_seen",)),
        ("context length", ("flops", "context_length")),
        ("validation windows", ("recipe", "train", "evaluation_sequences")),
        ("stretches of copied tokens", ("recipe", "data", "copies", "length")),
        ("distances of copied tokens", ("recipe", "data", "copies", "beyond")),
        ("base model", ("recipe", "model", "name")),
        ("learning rate warm-up", ("recipe", "train", "warmup_share")),
        ("learning rate schedule", ("recipe", "train", "schedule")),
        ("weight decay", ("recipe", "train", "weight_decay")),
        ("rank of adapters", ("recipe", "adapt", "lora_rank")),
        ("precision", ("precision",)),
    )
    ours, theirs = (
        sorted({run.value("recipe", "train", "wait_above") for run in arm.completed}, key=str)
        for arm in (subject, rival)
    )
    if ours and theirs and ours != theirs:  # None says something here, too: they never wait
        phrases.append(f"loss above which schedules wait {_told(ours)} against {_told(theirs)}")
    rates = subject.learning_rate, rival.learning_rate
    if rates[0] != rates[1] and not (_of_a_study(subject) and _of_a_study(rival)):
        phrases.append(f"learning rate {learning_rate(rates[0])} against {learning_rate(rates[1])}")
    return phrases


def _apart(subject: Arm, rival: Arm, *named: tuple[str, tuple[str, ...]]) -> list[str]:
    """Of these keys of records, with their names in words, those whose values both arms have, and not the same."""
    phrases = []
    for name, keys in named:
        ours, theirs = (_values(arm, *keys) for arm in (subject, rival))
        if ours and theirs and ours != theirs:
            phrases.append(f"{name} {_told(ours)} against {_told(theirs)}")
    return phrases


def no_verdict(subject: Arm, rival: Arm) -> list[str]:
    """Why no verdict is given on two arms as they stand: unlike treatment and unequal cost; empty where one may be."""
    return [*unlike_treatment(subject, rival), *unequal_cost(subject, rival)]


def unlike_notes(arms: Sequence[Arm], reference: Arm | None) -> list[str]:
    """A sentence for every completed arm that was not treated as ``reference`` was, for tables where both stand."""
    if reference is None:
        return []
    return [
        f"{arm.label} was not treated as {reference.label} was ({listing(phrases)}): their numbers are not comparable."
        for arm in arms
        if arm.completed and arm is not reference and (phrases := unlike_treatment(arm, reference))
    ]


def unequal(subject: Arm, rival: Arm) -> list[str]:
    """What differs between two arms: parameters beyond 1 %, the weight of distillation, and what forbids a verdict."""
    phrases = _apart(subject, rival, ("weight of distillation", ("recipe", "objective", "kd_weight")))
    parameters = relative(subject.parameters, rival.parameters)
    if parameters is not None and abs(parameters) > PARAMETER_TOLERANCE:
        phrases.append(f"{signed_percent(parameters)} parameters")
    return phrases + no_verdict(subject, rival)


def served_apart(arm: Arm) -> str:
    """A sentence where a learned router serves another rate than it trained at, and than was asked for; else empty."""
    trained, asked = arm.by_seed("routing", "trained_rate"), arm.mean("routing", "asked_rate")
    apart = {
        seed: rate
        for seed, rate in arm.by_seed("routing", "mean_rate").items()
        if abs(rate - trained.get(seed, rate)) > RATE_TOLERANCE
        and (asked is None or abs(rate - asked) > RATE_TOLERANCE)
    }
    if not arm.kind.learned or not apart:
        return ""
    told = "; routing.budget can hold a rate" if asked is None else f", with {percent(asked)} asked for"
    return (
        f"{arm.label} serves another rate than it was trained at, as inference has no noise: "
        f"{path_name(arm.paths[1])} takes {percent(fmean(apart.values()))} of the validation tokens and took "
        f"{percent(fmean(trained[seed] for seed in apart))} at the end of training{told}."
    )


def choose_subject(
    routed: Sequence[Arm], arms: Sequence[Arm], wanted: str | None
) -> tuple[Arm | None, tuple[str, ...]]:
    """The learned router that the question is asked of, and a note that says by which rule if there are several.

    A completed one whose decisions are causal; of these the one with the most other arms that it can be held against
    (treated alike, at equal cost), then with the most seeds, then the shortest name. Losses have no say: the best of
    several would flatter routing.

    Args:
        routed: the arms with a learned router.
        arms: all arms.
        wanted: label of the arm that was asked for, if any.

    Raises:
        UserError: ``wanted`` is not a routed arm.
    """

    def rank(arm: Arm) -> tuple[bool, int, int, int, str]:
        fair = [
            rival for rival in arms if rival not in routed and rival.completed and not no_verdict(arm, rival)
        ]
        return not arm.causal, -len(fair), -len(arm.seeds), len(arm.label), arm.label

    finished = [arm for arm in routed if arm.completed] or list(routed)
    chosen = (
        min(finished, key=rank, default=None) if wanted is None else arm_named(routed, wanted, "routed arm")
    )
    others = [arm.label for arm in finished if arm is not chosen]
    if chosen is None or not others:
        return chosen, ()
    rule = "causal first, then most controls at equal cost, then most seeds" if wanted is None else "as asked"
    shown = "is shown as a variant" if len(others) == 1 else "are shown as variants"
    return chosen, (f"The question is asked of {chosen.label} ({rule}); {listing(others)} {shown}.",)


def _values(arm: Arm, *keys: str) -> list[Any]:
    """The different values of the arm's completed runs."""
    return sorted({value for run in arm.completed if (value := run.value(*keys)) is not None}, key=str)


def _told(values: Sequence[Any]) -> str:
    return "/".join(
        count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
        for value in values
    )


def _of_a_study(arm: Arm) -> bool:
    """Whether a study made runs of the arm, all of which have one rate: it gives rates by one rule, such as a grid."""
    return any(str(run.value("command")).startswith("layerroute study") for run in arm.completed)


def data_identity(run: Run) -> tuple[str, str]:
    """What must be equal for losses to be comparable: data fingerprint and tokenizer."""
    return str(run.value("data", "fingerprint")), str(run.value("data", "tokenizer"))


def same_data(subject: Arm, rival: Arm) -> bool:
    """Whether all completed runs of both saw the same data."""
    return len({data_identity(run) for arm in (subject, rival) for run in arm.completed}) <= 1


def machine(run: Run) -> str:
    """The hardware of a run in words."""
    accelerator = run.value("hardware", "accelerator")
    cpu, cores = run.value("hardware", "cpu"), run.value("hardware", "cores")
    host = f"{cpu} ({cores} cores)"
    return f"{accelerator}, {host}" if accelerator else host


def spread(groups: Iterable[Sequence[float]]) -> float | None:
    """The largest ratio of two times within a group of equal work; None where no group has two."""
    ratios = [max(group) / min(group) for group in groups if len(group) > 1 and min(group) > 0]
    return max(ratios, default=None)
