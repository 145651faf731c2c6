"""What a report says first: is it faster, is it as good, can it be trusted. A sentence each, from the records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import PARAMETER_TOLERANCE, relative, unlike_treatment
from layerroute.lab.format import listing, percent, plural
from layerroute.lab.pairs import ENOUGH_SEEDS, Pair, agreed, deciding, difference
from layerroute.lab.report.speed import speed_at
from layerroute.outcomes import Outcome, outcome_of

_SHORT: Mapping[Outcome, str] = {
    Outcome.WINS: "Yes: {first} has a {better} {metric} than {second} at equal executed FLOPs ({amount})",
    Outcome.LOSES: "No: {first} has a {worse} {metric} than {second} at equal executed FLOPs ({amount})",
    Outcome.NO_DIFFERENCE: (
        "No difference from {second} is seen in {metric} ({amount}); one below about {least} would go unseen"
    ),
    Outcome.NOT_CORRECTED: (
        "No difference from {second} is left in {metric} ({amount}), corrected for the number of comparisons"
    ),
    Outcome.ONE_SEED: "Cannot be told: with one seed, {first} ends {size} {place} {second} in {metric}",
    Outcome.UNPAIRED: "Not measured: {first} and {second} have no completed seed in common",
    Outcome.OTHER_DATA: "Not measured: {first} and {second} saw different data",
    Outcome.UNALIKE: "Not measured: {first} and {second} were not treated alike ({reasons})",
    Outcome.UNEQUAL_COST: "Not measured: {first} and {second} do not cost the same ({reasons})",
    Outcome.UNFINISHED: "Not measured: no run of {lacking} completed",
}
_PRICE: Mapping[Outcome, str] = {
    Outcome.WINS: "Better than {second} by {size} ({ends})",
    Outcome.LOSES: "Worse than {second} by {size} ({ends})",
    Outcome.NO_DIFFERENCE: "Cannot be told from {second} ({ends})",
    Outcome.ONE_SEED: "{first} ends {size} {place} {second} (one seed)",
}


def first_screen(comparison: Comparison, bench: Sequence[Mapping[str, Any]] = ()) -> list[tuple[str, str]]:
    """The three questions and their answers; ``bench`` are records of ``layerroute bench``."""
    return [
        ("Is it faster?", faster(comparison, bench)),
        ("Is it as good?", as_good(comparison)),
        ("Can I trust it?", trusted(comparison)),
    ]


def faster(comparison: Comparison, bench: Sequence[Mapping[str, Any]]) -> str:
    """From paired timings at the share nearest to the subject's, else what was counted."""
    subject = comparison.subject
    if subject is None or not subject.completed:
        return "Not measured: no routed run completed."
    rate = subject.mean("routing", "mean_rate")
    timed = speed_at(bench, rate) if bench and rate is not None else []
    if timed:
        verdict = (
            "Yes"
            if all(low > 1 for _, low, _ in timed)
            else "No"
            if all(high < 1 for *_, high in timed)
            else "In part"
        )
        return f"{verdict}, in the timings given (with random decisions): {listing([text for text, *_ in timed])}."
    share, other = subject.executed_share, comparison.baseline
    counted = ""
    if share is not None:
        counted = f"{subject.label} executes {percent(share)} of the plain model's FLOPs"
    elif other is not None and subject.executed and other.executed:
        change = subject.executed / other.executed - 1
        more = f"{percent(abs(change))} {'more' if change > 0 else 'fewer'} FLOPs per token than"
        counted = (
            f"{subject.label} executes {more if abs(change) >= 0.001 else 'as many FLOPs as'} {other.label}"
        )
    if not counted:
        return "Not measured: the records hold neither paired timings nor executed FLOPs."
    return f"Not measured: {counted}, but FLOPs are not time (`layerroute bench` measures it, `--bench` shows it here)."


def as_good(comparison: Comparison) -> str:
    """The outcome, shortly; the price against the arm that gives nothing up comes first, where there is one."""
    subject = comparison.subject
    if subject is None or not subject.completed:
        return "Not measured: no routed run completed."
    if comparison.question.against == "controls":
        text = _against_controls(comparison, subject)
    elif comparison.primary is None:
        text = "Not measured: there is no arm to compare it with"
    else:
        text = _SHORT[comparison.primary.outcome].format_map(comparison.primary.facts)
    beside = [said for question in comparison.beside if (said := question.brief(comparison))]
    return f"{'; '.join([text, *beside])}."


def _against_controls(comparison: Comparison, subject: Arm) -> str:
    if not comparison.same_data:
        return "Not measured: the runs saw different data"
    price = _price(comparison, subject)
    held = {arm: entries for arm, entries in comparison.judged if entries}
    if not held:
        return f"{price + '; ' if price else ''}not measured against a control of equal FLOPs"
    outcomes = {arm: agreed(entries) for arm, entries in held.items()}
    lost = [arm for arm, outcome in outcomes.items() if outcome is Outcome.LOSES]
    open_ = [arm for arm, outcome in outcomes.items() if not outcome.certain]
    hardest = max(held, key=lambda arm: _lead(held[arm]))
    amount = f"{held[hardest][0].rival.label}, {deciding(held[hardest]).facts['amount']}"
    if lost:
        said = f"at equal FLOPs it loses to {listing([held[arm][0].rival.label for arm in lost])} (worst: {amount})"
    elif open_:
        said = f"at equal FLOPs it cannot be told from {listing([held[arm][0].rival.label for arm in open_])}"
        said += f" (nearest: {amount})"
    else:
        every = "the one control" if len(held) == 1 else f"each of {len(held)} controls"
        said = f"at equal FLOPs it is better than {every} (nearest: {amount})"
    return f"{price}; {said}" if price else f"{said[0].upper()}{said[1:]}"


def _price(comparison: Comparison, subject: Arm) -> str:
    """What the subject loses against the arm that gives nothing up."""
    whole, metric = comparison.question.whole(comparison), comparison.question.metric
    if whole is None or unlike_treatment(subject, whole):
        return ""
    gap = difference(comparison.question, subject, whole)
    if gap is None:
        return ""
    pair = Pair(question=comparison.question, subject=subject, rival=whole, difference=gap)
    said = outcome_of(gap.interval, lower_is_better=metric.lower_is_better)
    return _PRICE[said].format_map(pair.facts)


def _lead(entries: Sequence[Pair]) -> float:
    gap = deciding(entries).difference
    return float("-inf") if gap is None else gap.mean


def trusted(comparison: Comparison) -> str:
    """What speaks against the answer; where nothing does, what speaks for it."""
    subject = comparison.subject
    if subject is None or not subject.completed:
        return "There is nothing to trust yet: no routed run completed."
    rivals = _rivals(comparison)
    doubts = "; ".join(_doubts(comparison, subject, rivals))
    outcome = comparison.outcome
    if outcome in (None, Outcome.ONE_SEED, Outcome.UNPAIRED) or not outcome.comparable:
        return f"There is no verdict to trust yet{f': {doubts}' if doubts else ''}."
    if doubts:
        return f"Only in part: {doubts}."
    seeds = min(len(_common(subject, arm)) for arm in (subject, *rivals))
    return (
        f"Yes, for this model and this text: {plural(seeds, 'seed')}, every control, equal FLOPs, and the same data "
        "and treatment for all arms."
    )


def _common(subject: Arm, rival: Arm) -> set[int]:
    """Seeds that both have completed: comparisons are paired."""
    return set(subject.seeds) & set(rival.seeds)


def _rivals(comparison: Comparison) -> list[Arm]:
    """The arms that the verdict rests on."""
    if comparison.question.against == "controls":
        return [arm for arm, entries in comparison.judged if entries]
    return [comparison.primary.rival] if comparison.primary is not None else []


def _doubts(comparison: Comparison, subject: Arm, rivals: Sequence[Arm]) -> list[str]:
    found = []
    if not comparison.same_data:
        found.append("the runs saw different data")
    few = [arm.label for arm in (subject, *rivals) if len(_common(subject, arm)) < ENOUGH_SEEDS]
    if few:
        found.append(f"fewer than {ENOUGH_SEEDS} seeds of {listing(few)}")
    if comparison.missing:
        number = sum(not control.claim for control in comparison.question.controls)
        found.append(f"{len(comparison.missing)} of {plural(number, 'control')} missing")
    sizes = [relative(subject.parameters, rival.parameters) for rival in rivals]
    largest = max((size for size in sizes if size is not None), key=abs, default=0.0)
    if comparison.question.against == "baseline" and abs(largest) > PARAMETER_TOLERANCE:
        more = "more" if largest > 0 else "fewer"
        found.append(f"{subject.label} has {percent(abs(largest))} {more} parameters")
    if comparison.unfinished:
        found.append(f"{plural(len(comparison.unfinished), 'run')} not completed")
    if not subject.causal:
        found.append(f"decisions of {subject.label} may see later tokens")
    if any(run.value("dirty") for run in comparison.runs):
        found.append("code with uncommitted changes")
    return found
