"""Loss by place in the sequence: what a longer context is worth to each arm."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from layerroute.lab.arms import Arm
from layerroute.lab.format import MISSING, number
from layerroute.lab.table import Cell, Column, Row, Table


def loss_by_position(arm: Arm) -> dict[tuple[int, int], float]:
    """Cross-entropy in nats by place of the predicted token, in doubling ranges: mean over completed seeds.

    A range counts where every completed run that has places has it.
    """
    runs = [found for run in arm.completed if (found := run.value("validation", "by_position"))]
    by_run = [{(int(one["from"]), int(one["to"])): float(one["loss"]) for one in found} for found in runs]
    common = [place for place in by_run[0] if all(place in found for found in by_run)] if by_run else []
    return {place: fmean(found[place] for found in by_run) for place in sorted(common)}


def positions_table(arms: Sequence[Arm]) -> Table | None:
    """Loss by place of every arm whose records have it; None where there are not two places to compare."""
    found = {arm.label: losses for arm in arms if (losses := loss_by_position(arm))}
    return ranges_table(
        found,
        number,
        name="Table of loss by position",
        title="Validation loss (nats per token) by place in the sequence",
        note="Means over seeds. Places are those of the predicted tokens, in doubling ranges.",
    )


def ranges_table(
    found: Mapping[str, Mapping[tuple[int, int], float]],
    show: Callable[[float], str],
    *,
    name: str,
    title: str,
    note: str,
) -> Table | None:
    """A value by arm and by range of tokens, both ends included; None where there are not two ranges to compare."""
    ranges = sorted({place for values in found.values() for place in values})
    if len(ranges) < 2:
        return None
    rows = [
        Row(
            cells=(
                Cell(label),
                *(
                    Cell(show(values[place]), values[place]) if place in values else Cell(MISSING)
                    for place in ranges
                ),
            )
        )
        for label, values in found.items()
        if values
    ]
    columns = (Column(label=str(a) if a == b else f"{a}–{b}", numeric=True) for a, b in ranges)
    return Table(
        name=name, title=title, columns=(Column(label="Model"), *columns), rows=tuple(rows), notes=(note,)
    )
