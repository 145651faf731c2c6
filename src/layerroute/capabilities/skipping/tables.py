"""Tables about layer skipping: loss against what was skipped, differences, shares by site, and all runs."""

from collections.abc import Sequence
from typing import Any

from layerroute.capabilities.skipping.kinds import FULL, STATIC, skipped
from layerroute.lab.arms import Arm, mean_gap, on_common_seeds
from layerroute.lab.compare import Comparison
from layerroute.lab.fairness import (
    NOISY,
    machine,
    relative,
    same_data,
    spread,
    unlike_notes,
    unlike_treatment,
)
from layerroute.lab.format import MISSING, duration, number, percent, signed
from layerroute.lab.pairs import Pair
from layerroute.lab.table import Field, Table, cells, figures, words
from layerroute.lab.tables import SEEDS, estimated, measured, pair_fields, recorded, unfinished_rows
from layerroute.outcomes import SAME_COST_TEXT


def full_depth(comparison: Comparison) -> Arm | None:
    """The arm that never skips."""
    return next((arm for arm in comparison.completed if arm.kind == FULL), None)


def time_spread(comparison: Comparison) -> float | None:
    """How far times of equal work are apart, as a ratio; None where no two runs did equal work.

    Equal work is that of one arm's seeds, and, for each FLOP that they execute, that of arms whose layers are the
    same for all tokens.
    """
    runs = [(arm, run) for arm in comparison.arms for run in arm.completed]
    if len({machine(run) for _, run in runs}) > 1:
        return None
    groups: dict[str, list[float]] = {}
    for arm, run in runs:
        seconds, flops = run.value("timing", "evaluation_seconds"), run.value("flops", "executed_per_token")
        if not seconds:
            continue
        groups.setdefault(arm.label, []).append(seconds)
        if flops and arm.kind in (FULL, STATIC):
            groups.setdefault("static, by FLOPs", []).append(seconds / flops)
    return spread(groups.values())


def timed(comparison: Comparison) -> bool:
    """Whether times can be believed: equal work took equal time."""
    apart = time_spread(comparison)
    return apart is not None and apart <= NOISY


def time_note(comparison: Comparison) -> str:
    """What the times are worth."""
    what = "Time: wall time of each run's last evaluation, not measured in turn; no verdict rests on it"
    spread = time_spread(comparison)
    if spread is None:
        return f"{what}; no two runs of one machine did equal work by which to judge it, so it is not shown."
    apart = f"equal work (seeds of one arm; static arms, by FLOPs) took times up to {number(spread, 2)}×"
    if timed(comparison):
        return f"{what}; {apart} apart."
    return (
        f"{what}, and the machine was busy with other work: {apart} apart. So times are not shown here; "
        "`layerroute bench` measures speed in turn."
    )


def main_table(comparison: Comparison) -> Table:
    """Loss, perplexity and accuracy of every arm, with what it skipped and executed."""
    full = full_depth(comparison)

    def above(arm: Arm) -> float | None:
        if full is None or arm is full or unlike_treatment(arm, full) or not same_data(arm, full):
            return None
        return mean_gap(arm, full, "metrics", "validation_loss")

    fields: list[Field[Arm]] = [
        words("Arm", lambda arm: arm.label),
        words("Kind", lambda arm: str(arm.kind)),
        SEEDS,
        figures("Skipped", skipped, percent),
        estimated("Val loss ↓", "validation_loss"),
        figures("Above full", above, signed),
        measured("Perplexity ↓", "metrics", "validation_perplexity", show=lambda n: number(n, 2)),
        measured("Accuracy ↑", "metrics", "validation_accuracy", show=percent),
        figures("FLOPs", lambda arm: arm.executed_share, percent),
    ]
    return Table.of(
        "Table 1",
        "Validation cross-entropy in nats per token, and what was skipped for it",
        fields,
        comparison.completed,
        more=unfinished_rows(comparison.arms, len(fields)),
        notes=[
            "Skipped: the share of routed compute that was not spent, from hard decisions in inference mode on the "
            "validation text. FLOPs: executed per token, counted by PyTorch, against the plain model.",
            *unlike_notes(comparison.arms, comparison.yardstick),
        ],
    )


def differences_table(comparison: Comparison) -> Table:
    """The pairs of the comparison: losses, costs, and the verdict where the two were treated alike at equal cost."""
    one = comparison.yardstick
    told = one is not None and timed(comparison)

    def other(pair: Pair) -> Arm:
        return pair.subject if pair.rival is one else pair.rival

    def time(pair: Pair) -> float | None:
        both = on_common_seeds(other(pair), one) if one is not None and told else ()
        more = relative(*(arm.mean("timing", "evaluation_seconds") for arm in both)) if both else None
        return None if more is None else more + 1

    def counts(pair: Pair) -> str:
        found = pair.difference
        return MISSING if found is None else f"{len(found.seeds)} × {found.windows}"

    by_name = pair_fields(comparison.question.metric)
    name = one.label if one else "routed"
    whose = (
        f"each other arm less that of {name}"
        if comparison.baseline
        else f"{name} less that of each other arm"
    )
    return Table.of(
        "Table 2",
        f"Validation loss of {whose}",
        [
            by_name["arms"],
            figures("Its skip", lambda pair: skipped(other(pair)), percent),
            figures("Its FLOPs", lambda pair: other(pair).executed_share, percent),
            by_name["mean"],
            by_name["interval"],
            cells("Seeds × windows", counts),
            by_name["detectable"],
            figures("Its time", time, lambda ratio: MISSING if ratio is None else f"{number(ratio, 2)}×"),
            words("The first", lambda pair: pair.word),
        ],
        comparison.pairs,
        notes=[
            "Negative: the first has the lower loss. Both see the same windows of text with the same seeds, and the "
            "interval is over both (over windows alone where there is one seed). Detectable: the smallest true "
            "difference that would have been found with 80% power. Skip, FLOPs (executed, of the plain model's) and "
            f"time (against {name}'s) belong to the other arm. There is a verdict only where both were treated alike "
            f"and cost the same: {SAME_COST_TEXT}.",
            time_note(comparison),
        ],
    )


def sites_table(arms: Sequence[Arm]) -> Table:
    """Share of tokens that skip each site, by arm."""
    shown = [arm for arm in arms if arm.completed and arm.sites]

    def column(arm: Arm) -> Field[str]:
        def share(site: str) -> float | None:
            rate = arm.mean("routing", "rate", site)
            return None if rate is None else 1 - rate

        return figures(arm.label, share, lambda rate: percent(rate, 0))

    return Table.of(
        "Table 3",
        "Share of tokens that skip each site",
        [words("Site", str), *map(column, shown)],
        dict.fromkeys(site for arm in shown for site in arm.sites),
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run with its status and revision."""
    fields: list[Field[Any]] = [
        words("Run", lambda item: str(item[1].record["run"])),
        words("Kind", lambda item: str(item[0].kind)),
        words("Status", lambda item: item[1].status),
        recorded("Val loss", "metrics", "validation_loss", show=lambda n: number(n, 4)),
        recorded("Skipped", "routing", "skipped", show=percent),
        recorded("Training", "timing", "train_seconds", show=duration),
        words("Revision", lambda item: _revision(item[1].record)),
    ]
    return Table.of(
        "Table 4", "All runs", fields, [(arm, run) for arm in comparison.arms for run in arm.runs]
    )


def _revision(record: Any) -> str:
    dirty = " (with uncommitted changes)" if record.get("dirty") else ""
    return f"{str(record.get('revision') or MISSING)[:12]}{dirty}"
