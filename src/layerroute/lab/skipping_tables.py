"""Tables about layer skipping: loss against what was skipped, differences, and shares by site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import SAME_COST_TEXT, unequal_cost, unlike_notes, unlike_treatment
from layerroute.lab.format import MISSING, duration, listing, number, percent, plus_minus, signed
from layerroute.lab.paired import Gap, why_unpaired
from layerroute.lab.skipping_arms import evaluation_seconds, executed, kind_of, skipped
from layerroute.lab.table import Cell, Column, Row, Table, text_cells

if TYPE_CHECKING:
    from layerroute.lab.skipping import SkippingComparison


def main_table(comparison: SkippingComparison) -> Table:
    """Loss, perplexity and accuracy of every arm, with what it skipped and executed."""
    columns = (
        Column(label="Arm"),
        Column(label="Kind"),
        Column(label="Seeds", numeric=True),
        Column(label="Skipped", numeric=True),
        Column(label="Val loss ↓", numeric=True),
        Column(label="Above full", numeric=True),
        Column(label="Perplexity ↓", numeric=True),
        Column(label="Accuracy ↑", numeric=True),
        Column(label="FLOPs", numeric=True),
    )
    floor = comparison.full.mean("metrics", "validation_loss") if comparison.full else None
    rows = []
    for arm in comparison.arms:
        if not arm.completed:
            continue
        loss, share, flops = arm.mean("metrics", "validation_loss"), skipped(arm), executed(arm)
        above = None if floor is None or loss is None or arm is comparison.full else loss - floor
        if comparison.full is not None and unlike_treatment(arm, comparison.full):
            above = None
        perplexity = arm.mean("metrics", "validation_perplexity")
        accuracy = arm.mean("metrics", "validation_accuracy")
        estimate = arm.estimate("metrics", "validation_loss")
        half = None if estimate is None else estimate.half_width
        rows.append(
            Row(
                cells=(
                    Cell(arm.label),
                    Cell(kind_of(arm)),
                    Cell(str(len(arm.completed)), len(arm.completed)),
                    Cell(percent(share), share),
                    Cell(plus_minus(loss, half), loss),
                    Cell(MISSING if above is None else signed(above), above),
                    Cell(number(perplexity, 2), perplexity),
                    Cell(percent(accuracy), accuracy),
                    Cell(percent(flops), flops),
                )
            )
        )
    for arm in comparison.arms:
        for run in arm.unfinished:
            cells = [f"{arm.label}, seed {run.seed}", *[MISSING] * (len(columns) - 2), run.status.upper()]
            rows.append(Row(cells=text_cells(cells), kind="unfinished"))
    return Table(
        name="Table 1",
        title="Validation cross-entropy in nats per token, and what was skipped for it",
        columns=columns,
        rows=tuple(rows),
        notes=(
            "Skipped: share of the routed compute not spent, from hard decisions in inference mode on the "
            "validation text. FLOPs: executed per token, counted by PyTorch, against the plain model.",
            *unlike_notes(comparison.arms, comparison.baseline or comparison.subject),
        ),
    )


def differences_table(comparison: SkippingComparison) -> Table:
    """The pairs of the comparison: losses, costs, and the verdict where the two were treated alike at equal cost."""
    columns = (
        Column(label="Comparison"),
        Column(label="Its skip", numeric=True),
        Column(label="Its FLOPs", numeric=True),
        Column(label="Δ val loss", numeric=True),
        Column(label="95% interval", numeric=True),
        Column(label="Seeds × windows", numeric=True),
        Column(label="Detectable", numeric=True),
        Column(label="Its time", numeric=True),
        Column(label="The first"),
    )
    one = comparison.baseline or comparison.subject
    own = evaluation_seconds(one) if one is not None and comparison.timed else None
    rows = []
    for first, second in comparison.pairs:
        other = first if second is one else second
        gap, seconds, share = comparison.gaps.get(other.label), evaluation_seconds(other), skipped(other)
        time = None if seconds is None or not own else seconds / own
        flops = executed(other)
        cells = [
            Cell(f"{first.label} − {second.label}"),
            Cell(percent(share), share),
            Cell(percent(flops), flops),
        ]
        if gap is None:
            cells += [Cell(MISSING)] * 4
        else:
            cells += [
                Cell(signed(gap.mean), gap.mean),
                Cell(f"{signed(gap.low)} to {signed(gap.high)}"),
                Cell(f"{gap.seeds} × {gap.windows}"),
                Cell(number(gap.detectable), gap.detectable),
            ]
        cells += [Cell(MISSING if time is None else f"{number(time, 2)}×", time)]
        rows.append(Row(cells=(*cells, Cell(_said(comparison, first, second, gap)))))
    name = one.label if one else "routed"
    title = (
        f"of each other arm less that of {name}"
        if comparison.baseline
        else f"of {name} less that of each other arm"
    )
    return Table(
        name="Table 2",
        title=f"Validation loss {title}",
        columns=columns,
        rows=tuple(rows),
        notes=(
            "Negative: the first has the lower loss. Paired: the same windows of text, the same seeds; the interval is "
            "over both (a bootstrap over windows alone where there is one seed). Detectable: the smallest true "
            "difference that would have been found with 80% power. Skip, FLOPs (executed, of the plain model's) and "
            f"time (against {name}'s) are the other arm's. A verdict only where both were treated alike and cost the "
            f"same: {SAME_COST_TEXT}.",
            comparison.time_note,
        ),
    )


def _said(comparison: SkippingComparison, first: Arm, second: Arm, gap: Gap | None) -> str:
    if not comparison.same_data:
        return "no verdict: different data"
    reasons = unlike_treatment(first, second)
    if reasons or unequal_cost(first, second):
        return (
            f"no verdict: {listing([*reasons, *(['unequal FLOPs'] if unequal_cost(first, second) else [])])}"
        )
    return gap.outcome if gap is not None else f"cannot be paired: {why_unpaired(first, second)}"


def sites_table(arms: Sequence[Arm]) -> Table:
    """Share of tokens that skip each site, by arm."""
    shown = [arm for arm in arms if arm.completed and arm.sites]
    names = list(dict.fromkeys(site for arm in shown for site in arm.sites))
    columns = (Column(label="Site"), *(Column(label=arm.label, numeric=True) for arm in shown))
    rows = []
    for site in names:
        rates = [arm.mean("routing", "rate", site) for arm in shown]
        cells = [
            Cell(MISSING if rate is None else percent(1 - rate, 0), None if rate is None else 1 - rate)
            for rate in rates
        ]
        rows.append(Row(cells=(Cell(site), *cells)))
    return Table(
        name="Table 3", title="Share of tokens that skip each site", columns=columns, rows=tuple(rows)
    )


def runs_table(arms: Sequence[Arm]) -> Table:
    """Every run with its loss, cost and revision."""
    columns = (
        Column(label="Run"),
        Column(label="Kind"),
        Column(label="Status"),
        Column(label="Val loss", numeric=True),
        Column(label="Skipped", numeric=True),
        Column(label="Training", numeric=True),
        Column(label="Revision"),
    )
    rows = []
    for arm in arms:
        for run in arm.runs:
            loss, seconds = run.value("metrics", "validation_loss"), run.value("timing", "train_seconds")
            share = run.value("routing", "skipped")
            dirty = " (with uncommitted changes)" if run.value("dirty") else ""
            rows.append(
                Row(
                    cells=(
                        Cell(str(run.record["run"])),
                        Cell(kind_of(arm)),
                        Cell(run.status),
                        Cell(number(loss, 4), loss),
                        Cell(percent(share), share),
                        Cell(duration(seconds), seconds),
                        Cell(f"{str(run.value('revision') or MISSING)[:12]}{dirty}"),
                    )
                )
            )
    return Table(name="Table 4", title="All runs", columns=columns, rows=tuple(rows))
