"""Tables 1 to 3 of the paper draft, and what each arm was given."""

import math
from collections.abc import Sequence

from layerroute.capabilities.attention.routing import collapse_word, site_routing
from layerroute.lab.arms import Arm, on_common_seeds
from layerroute.lab.controls import rate_of
from layerroute.lab.fairness import (
    NOISY,
    data_identity,
    machine,
    no_verdict,
    relative,
    spread,
    unlike_notes,
    unlike_treatment,
)
from layerroute.lab.format import (
    MISSING,
    count,
    duration,
    learning_rate,
    listing,
    number,
    path_name,
    percent,
    signed_percent,
)
from layerroute.lab.runs import Run
from layerroute.lab.statistics import Estimate
from layerroute.lab.table import Cell, Field, Row, Table, cells, figures, plain, whole, words
from layerroute.lab.tables import (
    SEEDS,
    estimate_cell,
    estimated,
    interval_note,
    measured,
    recorded,
    unfinished_notes,
    unfinished_rows,
    unfinished_text,
)

MODEL: Field[Arm] = words("Model", lambda arm: arm.label)
MOST_TOLD = 10.0
"""Relative changes beyond it are not told in full: they say only that the baseline is all but 0."""


def bigram_losses(arms: Sequence[Arm]) -> list[float]:
    """The distinct bigram losses that the records give (one, where all arms saw the same data)."""
    found = (run.value("metrics", "bigram_loss") for arm in arms for run in arm.runs)
    return sorted({round(float(value), 6) for value in found if value is not None})


def bigram_sentence(arms: Sequence[Arm]) -> str:
    """How the arms stand against the bigram model; empty where no record has its loss."""
    losses = bigram_losses(arms)
    if not losses:
        return ""
    behind = [arm.label for arm in arms if arm.loss and max(arm.loss.values()) >= min(losses)]
    shown = listing([number(loss) for loss in losses])
    if behind:
        return f"{listing(behind)} did not beat a bigram model with back-off ({shown} nats) with every seed."
    if not any(arm.loss for arm in arms):
        return f"A bigram model with back-off, fitted on the same training tokens, reaches {shown} nats."
    return (
        "Every completed run beats a bigram model with back-off fitted on the same training tokens "
        f"({shown} nats)."
    )


def main_results(arms: Sequence[Arm], baseline: Arm | None) -> Table:
    """Table 1: final validation loss, perplexity and accuracy, with the improvement on the baseline."""
    fields: list[Field[Arm]] = [
        MODEL,
        SEEDS,
        estimated("Val loss ↓", "validation_loss"),
        cells("Perplexity ↓", lambda arm: _perplexity(arm)),
        estimated("Accuracy ↑", "validation_accuracy", digits=1, factor=100, unit="%"),
        words("Routing collapse?", collapse_word),
    ]
    rows = []
    for loss in bigram_losses(arms):
        texts = number(loss), number(math.exp(loss), 2)
        shown = (Cell(texts[0], loss), Cell(texts[1], math.exp(loss)), Cell(MISSING), Cell("N/A"))
        rows.append(Row(cells=(Cell("Bigram, back-off"), Cell(MISSING), *shown), kind="reference"))
    others = [arm for arm in arms if baseline and arm is not baseline and arm.completed]
    unlike = [arm.label for arm in others if baseline and no_verdict(arm, baseline)]
    improved = [_improvement(arm, baseline) for arm in others if baseline and arm.label not in unlike]
    notes = [interval_note(arms)]
    if improved and baseline:
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
    return Table.of(
        "Table 1",
        "Final validation loss (cross-entropy in nats per token), perplexity and next-token accuracy",
        fields,
        [arm for arm in arms if arm.completed],
        more=[*rows, *improved, *unfinished_rows(arms, len(fields))],
        notes=[*notes, *unfinished_notes(arms)],
    )


def _perplexity(arm: Arm) -> Cell:
    return estimate_cell(arm.estimate("metrics", "validation_perplexity"), 2 if len(arm.completed) < 2 else 1)


def _improvement(arm: Arm, baseline: Arm) -> Row:
    shared = sorted(set(arm.seeds) & set(baseline.seeds))
    shown = [Cell(f"Improvement: {arm.label}"), Cell(str(len(shared)), len(shared))]
    for metric, sign in (("validation_loss", -1), ("validation_perplexity", -1), ("validation_accuracy", 1)):
        ours, theirs = arm.by_seed("metrics", metric), baseline.by_seed("metrics", metric)
        common = [seed for seed in shared if seed in ours and seed in theirs]
        change = relative(sum(ours[s] for s in common), sum(theirs[s] for s in common)) if common else None
        change = None if change is None else sign * change
        text = signed_percent(change)
        if change is not None and abs(change) > MOST_TOLD:
            most = signed_percent(math.copysign(MOST_TOLD, change), 0)
            text = f"{'above' if change > 0 else 'below'} {most}"
        shown.append(Cell(text, change))
    return Row(cells=(*shown, Cell(MISSING)), kind="improvement")


def routing_statistics(arms: Sequence[Arm]) -> Table:
    """Table 2: where tokens went at each site, from hard decisions in inference mode on validation tokens."""
    sites = [(arm, site) for arm in arms for site in site_routing(arm)]
    cheap, expensive = sites[0][0].paths if sites else ("gdn", "softmax")

    def rest(rate: Estimate) -> Estimate:
        return Estimate(mean=1 - rate.mean, half_width=rate.half_width, n=rate.n)

    notes = [
        "Shares are of validation tokens, from hard decisions without noise. Entropy is −Σ f·ln f over "
        f"these shares: {number(math.log(2))} is an even split, 0 is one path only. Doubt is the entropy of "
        f"the router's probabilities for single tokens: 0 is sure of each, {number(math.log(2))} undecided "
        "on all. Balanced: 40 to 60%; collapsed: above 90% on one path, if no budget "
        "asked for that rate."
    ]
    if any(not arm.causal for arm in arms):
        labels = listing([arm.label for arm in arms if not arm.causal])
        notes.append(f"NOT CAUSAL (decisions may see later tokens): {labels}.")
    return Table.of(
        "Table 2",
        "Routing statistics of the final models",
        [
            words("Model", lambda pair: pair[0].label),
            words("Layer", lambda pair: pair[1].site),
            cells(f"{path_name(cheap)} %", lambda pair: estimate_cell(rest(pair[1].rate), 1, 100, "%")),
            cells(
                f"{path_name(expensive).capitalize()} %",
                lambda pair: estimate_cell(pair[1].rate, 1, 100, "%"),
            ),
            cells("Entropy", lambda pair: estimate_cell(pair[1].entropy, 2)),
            cells("Doubt", lambda pair: estimate_cell(pair[1].doubt, 2)),
            words(
                "Interpretation",
                lambda pair: (
                    pair[1].interpretation(pair[0].paths)
                    + (f" ({pair[0].kind})" if pair[0].kind.control else "")
                ),
            ),
        ],
        sites,
        notes=notes if sites else ["No completed run has routed sites."],
    )


def training_spread(arms: Sequence[Arm]) -> float | None:
    """How far the training times of an arm's seeds are apart at most, as a ratio; None with one seed everywhere.

    Seeds on different machines are not held against each other.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for arm in arms:
        for run in arm.completed:
            if seconds := run.value("timing", "train_seconds"):
                groups.setdefault((arm.label, machine(run)), []).append(seconds)
    return spread(groups.values())


def efficiency(arms: Sequence[Arm], baseline: Arm | None) -> Table:
    """Table 3: training throughput and time, and the overhead against the baseline."""
    apart = training_spread(arms)
    comparable = apart is None or apart <= NOISY

    def overhead(arm: Arm) -> Cell:
        more = None
        if baseline is not None and comparable and not unlike_treatment(arm, baseline):
            both = on_common_seeds(arm, baseline)
            more = relative(*(one.mean("timing", "train_seconds") for one in both))
        if more is None:
            return Cell(MISSING)
        return Cell(f"{number(more + 1, 1 if arm is baseline else 2)}×", more + 1)

    fields: list[Field[Arm]] = [
        MODEL,
        measured("Tokens/s ↑", "timing", "tokens_per_second", show=whole),
        measured("Training time ↓", "timing", "train_seconds", show=duration),
        cells("Relative overhead", overhead),
    ]
    completed = [arm for arm in arms if arm.completed]
    machines = sorted({machine(run) for arm in completed for run in arm.completed})
    notes = [
        "Wall time of separate runs, not a paired measurement: other work on the machine counts in it. "
        "Where both paths are computed and one is selected (masked execution), routing saves no time in "
        "training; `layerroute bench` measures speed in pairs."
    ]
    if not comparable:
        notes.append(
            f"THE MACHINE WAS BUSY: runs of one arm, which do equal work, took times up to {number(apart, 2)}× apart. "
            "So no overhead is told."
        )
    if len(machines) > 1:
        notes.append(f"DIFFERENT MACHINES, so times are not comparable: {'; '.join(machines)}.")
    return Table.of(
        "Table 3",
        "Training throughput and time",
        fields,
        completed,
        more=unfinished_rows(arms, len(fields)),
        notes=[*notes, *unlike_notes(arms, baseline)],
    )


def fairness(arms: Sequence[Arm], baseline: Arm | None, same_data: bool) -> Table:
    """What every arm was given: parameters, compute, learning rate, tokens, context, control and causal flags."""
    fields: list[Field[Arm]] = [
        MODEL,
        figures("Parameters", lambda arm: arm.parameters, count),
        figures(
            "vs baseline",
            lambda arm: relative(arm.parameters, baseline.parameters) if baseline else None,
            signed_percent,
        ),
        measured("FLOPs/token, all paths", "flops", "forward_per_token", show=count),
        figures("FLOPs/token, at rate", lambda arm: arm.flops, count),
        figures(
            "at rate vs baseline",
            lambda arm: relative(arm.flops, baseline.flops) if baseline else None,
            signed_percent,
        ),
        figures("FLOPs/token, executed", lambda arm: arm.executed, count),
        figures("Rate", rate_of, percent),
        figures("Learning rate", lambda arm: arm.learning_rate, learning_rate),
        measured("Tokens seen", "tokens_seen", show=count),
        measured("Context", "flops", "context_length", show=whole),
        words("Control", lambda arm: str(arm.kind) if arm.kind.control else "no"),
        words("Causal", lambda arm: "yes" if arm.causal else "NO"),
    ]
    if not same_data:
        fields.append(
            words("Data", lambda arm: "/".join(sorted({data_identity(run)[0][:8] for run in arm.runs})))
        )
    return Table.of(
        "Table of fairness",
        "What each arm was given",
        fields,
        arms,
        notes=[
            "FLOPs are forward only, per token at the context length given: with every path computed (masked "
            "execution), with each token's chosen path only (at the measured rate), and as counted while running.",
        ],
    )


def by_part(arms: Sequence[Arm]) -> Table:
    """Parameters and forward FLOPs per token by part of the model, one column an arm."""
    completed = [arm for arm in arms if arm.completed]
    parts = {
        (title, section, part): None
        for title, section in (("parameters", "parameters"), ("FLOPs/token", "flops"))
        for arm in completed
        for part in arm.example.value(section, "by_part") or {}
    }

    def column(arm: Arm) -> Field[tuple[str, str, str]]:
        return figures(arm.label, lambda item: arm.mean(item[1], "by_part", item[2]), count)

    return Table.of(
        "Table of parts",
        "Parameters and forward FLOPs per token by part (every path computed)",
        [
            words("Part", lambda item: f"{item[0]}: {item[2].replace('_', ' ')}"),
            *map(column, completed),
        ],
        parts,
    )


def runs_table(arms: Sequence[Arm]) -> Table:
    """Every run with its status and command."""
    fields: list[Field[tuple[Arm, Run]]] = [
        words("Arm", lambda item: item[0].label),
        figures("Seed", lambda item: item[1].seed, plain),
        words("Status", lambda item: item[1].status if item[1].completed else unfinished_text(item[1])),
        recorded("Val loss", "metrics", "validation_loss"),
        recorded("Best val loss", "metrics", "best_validation_loss"),
        recorded("Best step", "metrics", "best_step", show=plain),
        recorded("Training time", "timing", "train_seconds", show=duration),
        words("Command", lambda item: str(item[1].value("command") or MISSING)),
    ]
    runs = [(arm, run) for arm in arms for run in sorted(arm.runs, key=lambda run: (run.seed, str(run.path)))]
    return Table.of(
        "Table of runs",
        "Every run, also those that did not complete",
        fields,
        runs,
        kind=lambda item: "arm" if item[1].completed else "unfinished",
    )
