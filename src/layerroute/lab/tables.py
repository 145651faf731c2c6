"""The tables that every question has, and the columns of which those of one question are made."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import unequal, unlike_notes
from layerroute.lab.format import MISSING, count, listing, number, plus_minus, probability
from layerroute.lab.pairs import Pair
from layerroute.lab.question import LOSS, Metric
from layerroute.lab.runs import Run
from layerroute.lab.statistics import Estimate
from layerroute.lab.table import Cell, Field, Row, Table, cells, figures, interval, plain, text_cells, words
from layerroute.outcomes import SAME_COST_TEXT

if TYPE_CHECKING:
    from layerroute.lab.compare import Comparison


def estimate_cell(estimate: Estimate | None, digits: int = 3, factor: float = 1.0, unit: str = "") -> Cell:
    """``mean ± half width`` in the unit shown."""
    if estimate is None:
        return Cell(MISSING)
    half = None if estimate.half_width is None else factor * estimate.half_width
    return Cell(f"{plus_minus(factor * estimate.mean, half, digits)}{unit}", estimate.mean)


def measured(label: str, *keys: str, show: Callable[[float | None], str] = number) -> Field[Arm]:
    """A column of the mean over seeds of the record's number at ``keys``."""
    return figures(label, lambda arm: arm.mean(*keys), show)


def estimated(label: str, metric: str, *, digits: int = 3, factor: float = 1.0, unit: str = "") -> Field[Arm]:
    """A column of a metric with its interval over seeds."""
    return cells(label, lambda arm: estimate_cell(arm.estimate("metrics", metric), digits, factor, unit))


def recorded(label: str, *keys: str, show: Callable[[float | None], str] = number) -> Field[tuple[Arm, Run]]:
    """A column of what a single run's record has at ``keys``."""
    return figures(label, lambda item: item[1].value(*keys), show)


SEEDS: Field[Arm] = figures("Seeds", lambda arm: len(arm.completed), plain)


def unfinished_text(run: Run) -> str:
    """What became of a run that did not complete, in a few words."""
    steps = run.value("metrics", "steps")
    at = f" at step {steps}" if steps else ""
    error = " ".join(str(run.value("error") or "").split())
    return f"{run.status}{at}{f': {error}' if error else ''}; in no mean"


def unfinished_rows(arms: Sequence[Arm], width: int) -> list[Row]:
    """A row for every run that did not complete, so that none is silently dropped."""
    return [
        Row(
            cells=text_cells([f"{arm.label}, seed {run.seed}", *[MISSING] * (width - 2), run.status.upper()]),
            kind="unfinished",
        )
        for arm in arms
        for run in arm.unfinished
    ]


def unfinished_notes(arms: Sequence[Arm]) -> list[str]:
    """What became of each run that did not complete, one sentence each."""
    return [
        f"{arm.label}, seed {run.seed}: {unfinished_text(run)}." for arm in arms for run in arm.unfinished
    ]


def interval_note(arms: Sequence[Arm]) -> str:
    """What ± means, by how many seeds there are."""
    if max((len(arm.completed) for arm in arms), default=0) > 1:
        return "± is the 95% t interval over seeds; a number without ± is one seed."
    return "One seed for each arm: no interval can be given, and no difference can be told from chance."


def main_table(comparison: "Comparison") -> Table:
    """Every arm with its loss and its cost: for questions that say nothing better."""
    fields: list[Field[Arm]] = [
        words("Model", lambda arm: arm.label),
        words("Kind", lambda arm: str(arm.kind)),
        SEEDS,
        estimated("Val loss ↓", "validation_loss"),
        figures("FLOPs/token, executed", lambda arm: arm.executed, count),
    ]
    return Table.of(
        "Table 1",
        "Final validation loss (cross-entropy in nats per token), and what it cost",
        fields,
        comparison.completed,
        more=unfinished_rows(comparison.arms, len(fields)),
        notes=[
            interval_note(comparison.arms),
            *unlike_notes(comparison.arms, comparison.yardstick),
            *unfinished_notes(comparison.arms),
        ],
    )


def pair_fields(metric: Metric) -> dict[str, Field[Pair]]:
    """Columns about a pair of arms, by short name."""

    def part(pair: Pair, name: str) -> float | None:
        found: float | None = getattr(pair.difference, name, None)
        return found

    return {
        "arms": words("Comparison", lambda pair: f"{pair.subject.label} − {pair.rival.label}"),
        "seeds": figures("Seeds", lambda pair: len(pair.difference.seeds) if pair.difference else 0, plain),
        "mean": figures(metric.column, lambda pair: part(pair, "mean"), metric.show),
        "interval": cells(
            "95% interval", lambda pair: interval(part(pair, "low"), part(pair, "high"), metric.show)
        ),
        "p": figures("p", lambda pair: pair.p_adjusted, probability),
        "detectable": figures("Detectable", lambda pair: part(pair, "detectable"), metric.size),
    }


def differences(pairs: Sequence[Pair]) -> Table:
    """The paired differences in validation loss that the verdict rests on."""
    by_name = pair_fields(pairs[0].question.metric if pairs else LOSS)

    def with_half_width(pair: Pair) -> Cell:
        shown, found = by_name["interval"].cell(pair), pair.difference
        if found is None or found.low is None or found.high is None:
            return shown
        return Cell(shown.text, (found.high - found.low) / 2)

    notes = [
        "Δ is paired by seed, in nats; negative means that the first arm has the lower loss. Detectable: the "
        "smallest true difference that these seeds would have found with 80% power. A verdict only where both arms "
        f"were treated alike and cost the same: {SAME_COST_TEXT}; nothing is read off between arms."
    ]
    if sum(pair.p_adjusted is not None for pair in pairs) > 1:
        notes.append(
            "The first comparison is the question asked and tested alone; the p values of the others are "
            "corrected for their number (Holm), their intervals are not."
        )
    return Table.of(
        "Table of differences",
        "Differences in final validation loss, paired by seed",
        [
            *(by_name | {"interval": cells("95% interval", with_half_width)}).values(),
            words("Verdict", lambda pair: pair.word),
            words(
                "Not equal besides",
                lambda pair: listing(unequal(pair.subject, pair.rival)) or "nothing found",
            ),
        ],
        pairs,
        notes=notes,
    )


def loss_by_position(arm: Arm) -> dict[tuple[int, int], float]:
    """Cross-entropy in nats by place of the predicted token, in doubling ranges: mean over completed seeds.

    A range counts where every completed run that has places has it.
    """
    runs = [found for run in arm.completed if (found := run.value("validation", "by_position"))]
    by_run = [
        {(int(one["from"]), int(one["to"])): float(one["loss"]) for one in found if one["loss"] is not None}
        for found in runs
    ]
    common = [place for place in by_run[0] if all(place in found for found in by_run)] if by_run else []
    return {place: fmean(found[place] for found in by_run) for place in sorted(common)}


def positions_table(arms: Sequence[Arm]) -> Table | None:
    """Loss by place of every arm whose records have it; None where there are not two places to compare."""
    return ranges_table(
        {arm.label: losses for arm in arms if (losses := loss_by_position(arm))},
        number,
        name="Table of loss by position",
        title="Validation loss (nats per token) by place in the sequence",
        note="Means over seeds. Places are those of the predicted tokens, in doubling ranges.",
    )


def ranges_table(
    found: Mapping[str, Mapping[tuple[int, int], float]],
    show: Callable[[float | None], str],
    *,
    name: str,
    title: str,
    note: str,
) -> Table | None:
    """A value by arm and by range of tokens, both ends included; None where there are not two ranges to compare."""
    ranges = sorted({place for values in found.values() for place in values})
    if len(ranges) < 2:
        return None

    def column(a: int, b: int) -> Field[tuple[str, Mapping[tuple[int, int], float]]]:
        return figures(str(a) if a == b else f"{a}–{b}", lambda item: item[1].get((a, b)), show)

    return Table.of(
        name,
        title,
        [words("Model", lambda item: item[0]), *(column(a, b) for a, b in ranges)],
        [(label, values) for label, values in found.items() if values],
        notes=[note],
    )
