"""Table 3 of the paper draft, and what each arm was given: fairness, parts, controls, runs."""

from collections.abc import Sequence

from layerroute.lab.arms import Arm
from layerroute.lab.controls import ControlCheck, rate_of
from layerroute.lab.fairness import data_identity, machine, relative, unlike_notes, unlike_treatment
from layerroute.lab.format import (
    MISSING,
    count,
    duration,
    learning_rate,
    listing,
    number,
    percent,
    signed_percent,
)
from layerroute.lab.table import Cell, Column, Row, Table, text_cells
from layerroute.lab.tables import DIFFERENT_DATA, unfinished_rows, unfinished_text
from layerroute.lab.timing import NOISY, spread


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
    columns = (
        Column(label="Model"),
        Column(label="Tokens/s ↑", numeric=True),
        Column(label="Training time ↓", numeric=True),
        Column(label="Relative overhead", numeric=True),
    )
    apart = training_spread(arms)
    comparable = apart is None or apart <= NOISY
    reference = baseline.mean("timing", "train_seconds") if baseline and comparable else None
    rows = []
    for arm in arms:
        if not arm.completed:
            continue
        seconds, speed = arm.mean("timing", "train_seconds"), arm.mean("timing", "tokens_per_second")
        alike = baseline is not None and not unlike_treatment(arm, baseline)
        ratio = relative(seconds, reference) if alike else None
        ratio = None if ratio is None else ratio + 1
        overhead = MISSING if ratio is None else f"{number(ratio, 1 if arm is baseline else 2)}×"
        rows.append(
            Row(
                cells=(
                    Cell(arm.label),
                    Cell(number(speed, 0), speed),
                    Cell(duration(seconds), seconds),
                    Cell(overhead, ratio),
                )
            )
        )
    rows += unfinished_rows(arms, len(columns))
    runs = [run for arm in arms for run in arm.completed]
    machines = sorted({machine(run) for run in runs})
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
    notes += unlike_notes(arms, baseline)
    return Table(
        name="Table 3",
        title="Training throughput and time",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(notes),
    )


def fairness(arms: Sequence[Arm], baseline: Arm | None, same_data: bool) -> Table:
    """What every arm was given: parameters, compute, learning rate, tokens, context, control and causal flags."""
    columns: tuple[Column, ...] = (
        Column(label="Model"),
        Column(label="Parameters", numeric=True),
        Column(label="vs baseline", numeric=True),
        Column(label="FLOPs/token, all paths", numeric=True),
        Column(label="FLOPs/token, at rate", numeric=True),
        Column(label="at rate vs baseline", numeric=True),
        Column(label="FLOPs/token, executed", numeric=True),
        Column(label="Rate", numeric=True),
        Column(label="Learning rate", numeric=True),
        Column(label="Tokens seen", numeric=True),
        Column(label="Context", numeric=True),
        Column(label="Control"),
        Column(label="Causal"),
    )
    if not same_data:
        columns += (Column(label="Data"),)
    rows = []
    for arm in arms:
        parameters, flops = arm.parameters, arm.flops
        over = relative(parameters, baseline.parameters) if baseline else None
        more = relative(flops, baseline.flops) if baseline else None
        forward, executed = arm.mean("flops", "forward_per_token"), arm.mean("flops", "executed_per_token")
        tokens, context = arm.mean("tokens_seen"), arm.mean("flops", "context_length")
        cells: tuple[Cell, ...] = (
            Cell(arm.label),
            Cell(count(parameters), parameters),
            Cell(signed_percent(over), over),
            Cell(count(forward), forward),
            Cell(count(flops), flops),
            Cell(signed_percent(more), more),
            Cell(count(executed), executed),
            Cell(percent(rate_of(arm)), rate_of(arm)),
            Cell(learning_rate(arm.learning_rate), arm.learning_rate),
            Cell(count(tokens), tokens),
            Cell(MISSING if context is None else number(context, 0), context),
            Cell(str(arm.kind) if arm.kind.control else "no"),
            Cell("yes" if arm.causal else "NO"),
        )
        if not same_data:
            cells += (Cell("/".join(sorted({data_identity(run)[0][:8] for run in arm.runs}))),)
        rows.append(Row(cells=cells))
    notes = [
        "FLOPs are forward only, per token at the context length given: with every path computed (masked "
        "execution), with each token's chosen path only (at the measured rate), and as counted while running."
    ]
    if not same_data:
        notes.insert(0, DIFFERENT_DATA)
    return Table(
        name="Table of fairness",
        title="What each arm was given",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(notes),
    )


def by_part(arms: Sequence[Arm]) -> Table:
    """Parameters and forward FLOPs per token by part of the model, one column an arm."""
    completed = [arm for arm in arms if arm.completed]
    columns = (Column(label="Part"), *(Column(label=arm.label, numeric=True) for arm in completed))
    rows = []
    for title, section, unit in (("parameters", "parameters", ""), ("FLOPs/token", "flops", "")):
        parts: dict[str, None] = {}
        for arm in completed:
            parts.update(dict.fromkeys(arm.example.value(section, "by_part") or {}))
        for part in parts:
            values = [arm.mean(section, "by_part", part) for arm in completed]
            cells = (Cell(f"{title}: {part.replace('_', ' ')}"), *(Cell(count(v, unit), v) for v in values))
            rows.append(Row(cells=cells))
    return Table(
        name="Table of parts",
        title="Parameters and forward FLOPs per token by part (every path computed)",
        columns=columns,
        rows=tuple(rows),
    )


def controls_table(checks: Sequence[ControlCheck], subject: Arm | None) -> Table:
    """The controls that a routing claim needs, and whether they are there."""
    rows = tuple(
        Row(
            cells=text_cells(
                [
                    check.name,
                    listing(check.arms) if check.arms else "MISSING",
                    check.refutes,
                    check.detail or MISSING,
                ]
            )
        )
        for check in checks
    )
    whose = f" for {subject.label}" if subject else ""
    return Table(
        name="Table of controls",
        title=f"Controls{whose}: what each could refute, and which arm plays it",
        columns=tuple(Column(label=label) for label in ("Control", "Arms", "Could show", "Detail")),
        rows=rows,
    )


def runs_table(arms: Sequence[Arm]) -> Table:
    """Every run with its status and command."""
    labels = ("Arm", "Seed", "Status", "Val loss", "Best val loss", "Best step", "Training time", "Command")
    numeric = {"Seed", "Val loss", "Best val loss", "Best step", "Training time"}
    rows = []
    for arm in arms:
        for run in sorted(arm.runs, key=lambda run: (run.seed, str(run.path))):
            loss, best = run.value("metrics", "validation_loss"), run.value("metrics", "best_validation_loss")
            step, seconds = run.value("metrics", "best_step"), run.value("timing", "train_seconds")
            cells = (
                Cell(arm.label),
                Cell(str(run.seed), run.seed),
                Cell(run.status if run.completed else unfinished_text(run)),
                Cell(number(loss), loss),
                Cell(number(best), best),
                Cell(MISSING if step is None else str(step), step),
                Cell(duration(seconds), seconds),
                Cell(str(run.value("command") or MISSING)),
            )
            rows.append(Row(cells=cells, kind="arm" if run.completed else "unfinished"))
    return Table(
        name="Table of runs",
        title="Every run, also those that did not complete",
        columns=tuple(Column(label=label, numeric=label in numeric) for label in labels),
        rows=tuple(rows),
    )
