"""Recall and rate at lengths beyond that of training, and whether a router keeps its rate there."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from layerroute.capabilities.recall.measures import lengths, rates_by_length, recall_by_seed, softmax_rate
from layerroute.lab.arms import Arm
from layerroute.lab.fairness import RATE_TOLERANCE
from layerroute.lab.format import MISSING, number, percent, plural
from layerroute.lab.table import Cell, Field, Table, cells, words
from layerroute.lab.tables import ranges_table

FEWEST_ANSWERS = 30
"""Answers that a share by distance needs: 30 leave it uncertain by some 18 points either way."""
SAME_TOKENS = 0.10
"""A router that takes within so much of as many tokens at every length keeps its number of tokens, not its rate."""


def rate_sentence(arm: Arm) -> str:
    """Whether a learned router holds its rate as sequences grow; empty for other arms, or with one length alone.

    Each seed is judged by itself: rates that rise with one seed and fall with another have a steady mean. A rate that
    falls as 1/length spends as many softmax queries on a sequence of any length; one that stays spends more on a
    longer one.
    """
    by_seed = {seed: rates for seed, rates in rates_by_length(arm).items() if len(rates) > 1}
    if not arm.kind.learned or not by_seed:
        return ""
    shortest = min(min(rates) for rates in by_seed.values())
    longest = max(max(rates) for rates in by_seed.values())
    told = " and ".join(
        f"{_span([rates[m] for rates in by_seed.values() if m in rates])} at {m}×"
        for m in (shortest, longest)
    )
    told += f" ({plural(len(by_seed), 'seed')})"
    kept = {_kept(rates) for rates in by_seed.values()}
    if kept == {"rate"}:
        return f"{arm.label} holds its rate: {told}."
    if kept == {"tokens"}:
        length = lengths(arm)[shortest]
        tokens = round(fmean(rates[shortest] for rates in by_seed.values() if shortest in rates) * length)
        return (
            f"{arm.label} does not hold its rate but the number of tokens that it picks, about {tokens} a sequence at "
            f"every length: {told}."
        )
    always = "" if "rate" not in kept else " with every seed"
    return f"{arm.label} does not hold its rate{always}: {told}."


def _kept(rates: Mapping[int, float]) -> str:
    """What one seed keeps from the shortest to the longest sequences: its ``rate``, its ``tokens``, or ``nothing``."""
    shortest = min(rates)
    if max(abs(rate - rates[shortest]) for rate in rates.values()) <= RATE_TOLERANCE:
        return "rate"
    tokens = [rate * multiple for multiple, rate in rates.items()]
    base = rates[shortest] * shortest
    return "tokens" if base and max(abs(value / base - 1) for value in tokens) <= SAME_TOKENS else "nothing"


def recall_lengths(arms: Sequence[Arm]) -> Table | None:
    """Answers recalled, and the softmax rate, at every length measured; None where only one length was."""
    known = [arm for arm in arms if recall_by_seed(arm)]
    multiples = sorted({multiple for arm in known for multiple in lengths(arm)})
    if len(multiples) < 2:
        return None

    def recalled(multiple: int) -> Field[Arm]:
        return cells(
            f"Recalled {multiple}×", lambda arm: _cell(recall_by_seed(arm, multiple=multiple).values())
        )

    def rate(multiple: int) -> Field[Arm]:
        def cell(arm: Arm) -> Cell:
            routed = [own.get(multiple) for own in rates_by_length(arm).values() if multiple in own] or [None]
            return _cell(share for own in routed if (share := softmax_rate(arm, own)) is not None)

        return cells(f"Rate {multiple}×", cell)

    tokens, longest = lengths(known[0]), max(multiples)
    return Table.of(
        "Table of recall by length",
        "Answers recalled, and tokens on softmax, beyond the length of training",
        [
            words("Model", lambda arm: arm.label),
            *map(recalled, multiples),
            *map(rate, multiples),
        ],
        known,
        notes=[
            "Means over seeds, with the least and the most of them where they are more than a point apart. "
            f"1× is {number(tokens.get(1), 0)} tokens, {longest}× {number(tokens.get(longest), 0)}; the "
            "pairs are as many at every length, with more filler between them. The softmax rate is over the layers "
            "after the first.",
            *filter(None, map(rate_sentence, known)),
        ],
    )


def recall_by_distance(arm: Arm) -> dict[tuple[int, int], tuple[float, int]]:
    """Share of answers recalled, and how many were asked for, by tokens between key and question in doubling ranges.

    Over all answers of all completed seeds, at the length of training.
    """
    right: dict[tuple[int, int], float] = {}
    asked: dict[tuple[int, int], int] = {}
    for run in arm.completed:
        for point in run.value("recall", "by_distance") or ():
            place, answers = (int(point["from"]), int(point["to"])), int(point["answers"])
            right[place] = right.get(place, 0.0) + point["accuracy"] * answers
            asked[place] = asked.get(place, 0) + answers
    return {place: (right[place] / asked[place], asked[place]) for place in sorted(right) if asked[place]}


def recall_distances(arms: Sequence[Arm]) -> Table | None:
    """Answers recalled by their distance from the key; None where there are not two distances with enough answers."""
    found = {arm.label: recall_by_distance(arm) for arm in arms}
    enough = {
        label: {place: share for place, (share, asked) in places.items() if asked >= FEWEST_ANSWERS}
        for label, places in found.items()
    }
    return ranges_table(
        enough,
        percent,
        name="Table of recall by distance",
        title="Answers recalled by the distance of key and question, at the length of training",
        note=f"Tokens between a key and its question, in doubling ranges with {FEWEST_ANSWERS} or more answers; over "
        "all answers of all seeds.",
    )


def _cell(values: Iterable[float]) -> Cell:
    found = list(values)
    return Cell(_span(found), fmean(found)) if found else Cell(MISSING)


def _span(values: Sequence[float]) -> str:
    """``25.0%``; ``11.1% (0.8 to 27.8)`` where seeds are more than a point apart."""
    low, high = min(values), max(values)
    text = percent(fmean(values))
    return f"{text} ({number(100 * low, 1)} to {number(100 * high, 1)})" if high - low > 0.01 else text
