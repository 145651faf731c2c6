"""Tables 1 and 2 of the paper draft, and the differences behind the verdict."""

import math
from collections.abc import Sequence

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import SAME_COST_TEXT, no_verdict, relative, unequal, unlike_notes
from layerroute.lab.format import (
    MISSING,
    listing,
    number,
    plus_minus,
    probability,
    signed,
    signed_percent,
)
from layerroute.lab.routing import collapse_word, path_name, site_routing
from layerroute.lab.runs import Run
from layerroute.lab.statistics import Estimate
from layerroute.lab.table import Cell, Column, Row, Table, text_cells
from layerroute.lab.verdict import Pair

DIFFERENT_DATA = "The runs saw different data or tokenizers: their losses are NOT comparable."


def _cell(estimate: Estimate | None, digits: int, factor: float = 1.0, unit: str = "") -> Cell:
    if estimate is None:
        return Cell(MISSING)
    half = None if estimate.half_width is None else factor * estimate.half_width
    return Cell(f"{plus_minus(factor * estimate.mean, half, digits)}{unit}", estimate.mean)


def _interval_note(arms: Sequence[Arm]) -> str:
    if max((len(arm.completed) for arm in arms), default=0) > 1:
        return "± is the 95% t interval over seeds; a number without ± is one seed."
    return "One seed for each arm: no interval can be given, and no difference can be told from chance."


def bigram_losses(arms: Sequence[Arm]) -> list[float]:
    """The distinct bigram losses that the records give (one, where all arms saw the same data)."""
    found = {
        round(float(value), 6)
        for arm in arms
        for run in arm.runs
        if (value := run.value("metrics", "bigram_loss")) is not None
    }
    return sorted(found)


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


MOST_TOLD = 10.0
"""Relative changes beyond it are not told in full: they say only that the baseline is all but 0."""


def main_results(arms: Sequence[Arm], baseline: Arm | None, same_data: bool) -> Table:
    """Table 1: final validation loss, perplexity and accuracy, with the improvement on the baseline."""
    columns = (
        Column(label="Model"),
        Column(label="Seeds", numeric=True),
        Column(label="Val loss ↓", numeric=True),
        Column(label="Perplexity ↓", numeric=True),
        Column(label="Accuracy ↑", numeric=True),
        Column(label="Routing collapse?"),
    )
    rows = []
    for arm in arms:
        if arm.completed:
            rows.append(
                Row(
                    cells=(
                        Cell(arm.label),
                        Cell(str(len(arm.completed)), len(arm.completed)),
                        _cell(arm.estimate("metrics", "validation_loss"), 3),
                        _cell(
                            arm.estimate("metrics", "validation_perplexity"),
                            2 if len(arm.completed) < 2 else 1,
                        ),
                        _cell(arm.estimate("metrics", "validation_accuracy"), 1, 100, "%"),
                        Cell(collapse_word(arm)),
                    )
                )
            )
    for loss in bigram_losses(arms):
        perplexity = math.exp(loss)
        cells = (
            Cell("Bigram, back-off"),
            Cell(MISSING),
            Cell(number(loss), loss),
            Cell(number(perplexity, 2), perplexity),
            Cell(MISSING),
            Cell("N/A"),
        )
        rows.append(Row(cells=cells, kind="reference"))
    others = [arm for arm in arms if baseline and arm is not baseline and arm.completed]
    unlike = [arm.label for arm in others if baseline and no_verdict(arm, baseline)]
    rows += [_improvement(arm, baseline) for arm in others if baseline and arm.label not in unlike]
    rows += unfinished_rows(arms, len(columns))
    notes = [] if same_data else [DIFFERENT_DATA]
    notes.append(_interval_note(arms))
    if any(row.kind == "improvement" for row in rows) and baseline:
        notes.append(
            f"Improvement is (baseline − model) / baseline over the seeds in common with {baseline.label}, "
            "with the sign turned for accuracy: plus is better everywhere. Whether it is more than noise is "
            "in the table of differences."
        )
    if baseline and unlike:
        notes.append(
            f"No improvement is told of {listing(unlike)}: cost or treatment is not that of {baseline.label}."
        )
    notes += unlike_notes(arms, baseline)
    if bigram_losses(arms):
        notes.append(
            "The bigram row is a count model with back-off fitted on the same training tokens: a floor that "
            "any trained model should beat."
        )
    return Table(
        name="Table 1",
        title="Final validation loss (cross-entropy in nats per token), perplexity and next-token accuracy",
        columns=columns,
        rows=tuple(rows),
        notes=(*notes, *unfinished_notes(arms)),
    )


def _improvement(arm: Arm, baseline: Arm) -> Row:
    cells = [Cell(f"Improvement: {arm.label}")]
    seeds = sorted(set(arm.seeds) & set(baseline.seeds))
    cells.append(Cell(str(len(seeds)), len(seeds)))
    for metric, sign in (("validation_loss", -1), ("validation_perplexity", -1), ("validation_accuracy", 1)):
        ours, theirs = arm.by_seed("metrics", metric), baseline.by_seed("metrics", metric)
        common = [seed for seed in seeds if seed in ours and seed in theirs]
        change = relative(sum(ours[s] for s in common), sum(theirs[s] for s in common)) if common else None
        change = None if change is None else sign * change
        text = signed_percent(change)
        if change is not None and abs(change) > MOST_TOLD:
            text = (
                f"{'above' if change > 0 else 'below'} {signed_percent(math.copysign(MOST_TOLD, change), 0)}"
            )
        cells.append(Cell(text, change))
    return Row(cells=(*cells, Cell(MISSING)), kind="improvement")


def differences(pairs: Sequence[Pair]) -> Table:
    """The paired differences in validation loss that the verdict rests on."""
    columns = (
        Column(label="Comparison"),
        Column(label="Seeds", numeric=True),
        Column(label="Δ val loss", numeric=True),
        Column(label="95% interval", numeric=True),
        Column(label="p", numeric=True),
        Column(label="Detectable", numeric=True),
        Column(label="Verdict"),
        Column(label="Not equal besides"),
    )
    rows = []
    for pair in pairs:
        estimate, difference = pair.difference.estimate, pair.difference
        mean = None if estimate is None else estimate.mean
        interval = MISSING
        if estimate is not None and estimate.half_width is not None:
            interval = f"{signed(estimate.low, 4)} to {signed(estimate.high, 4)}"
        rows.append(
            Row(
                cells=(
                    Cell(f"{pair.subject.label} − {pair.rival.label}"),
                    Cell(str(len(difference.seeds)), len(difference.seeds)),
                    Cell(signed(mean, 4), mean),
                    Cell(interval, None if estimate is None else estimate.half_width),
                    Cell(probability(pair.p_adjusted), pair.p_adjusted),
                    Cell(number(difference.detectable, 4), difference.detectable),
                    Cell(str(pair.outcome)),
                    Cell(listing(unequal(pair.subject, pair.rival)) or "nothing found"),
                )
            )
        )
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
    return Table(
        name="Table of differences",
        title="Differences in final validation loss, paired by seed",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(notes),
    )


def routing_statistics(arms: Sequence[Arm]) -> Table:
    """Table 2: where tokens went at each site, from hard decisions in inference mode on validation tokens."""
    routed = [arm for arm in arms if site_routing(arm)]
    cheap, expensive = routed[0].paths if routed else ("gdn", "softmax")
    columns = (
        Column(label="Model"),
        Column(label="Layer"),
        Column(label=f"{path_name(cheap)} %", numeric=True),
        Column(label=f"{path_name(expensive).capitalize()} %", numeric=True),
        Column(label="Entropy", numeric=True),
        Column(label="Doubt", numeric=True),
        Column(label="Interpretation"),
    )
    rows = []
    for arm in routed:
        for site in site_routing(arm):
            rate, control = site.rate, arm.kind.control
            other = Estimate(mean=1 - rate.mean, half_width=rate.half_width, n=rate.n)
            word = site.interpretation(arm.paths)
            rows.append(
                Row(
                    cells=(
                        Cell(arm.label),
                        Cell(site.site),
                        _cell(other, 1, 100, "%"),
                        _cell(rate, 1, 100, "%"),
                        _cell(site.entropy, 2),
                        _cell(site.doubt, 2),
                        Cell(f"{word} ({arm.kind})" if control else word),
                    )
                )
            )
    notes = [
        "Shares are of validation tokens, from hard decisions without noise. Entropy is −Σ f·ln f over "
        f"these shares: {number(math.log(2))} is an even split, 0 is one path only. Doubt is the entropy of "
        f"the router's probabilities for single tokens: 0 is sure of each, {number(math.log(2))} undecided "
        "on all. Balanced: 40 to 60%; collapsed: above 90% on one path."
    ]
    if any(not arm.causal for arm in arms):
        notes.append(
            "NOT CAUSAL (decisions may see later tokens): "
            f"{listing([a.label for a in arms if not a.causal])}."
        )
    if not rows:
        notes = ["No completed run has routed sites."]
    return Table(
        name="Table 2",
        title="Routing statistics of the final models",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(notes),
    )
