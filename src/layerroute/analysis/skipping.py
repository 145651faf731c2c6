"""Layer-skipping runs side by side: quality against compute really skipped, paired by text and by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layerroute.analysis.arms import Arm, alike_besides, group_arms
from layerroute.analysis.equal_cost import Cost, EqualCost, equal_cost, equal_cost_table
from layerroute.analysis.fairness import data_identity, machine
from layerroute.analysis.format import listing, number, percent, plural, signed
from layerroute.analysis.paired import Gap, paired_gap
from layerroute.analysis.positions import positions_table
from layerroute.analysis.runs import Run
from layerroute.analysis.skipping_arms import (
    FULL,
    ORDER,
    RATE,
    ROUTED,
    STATIC,
    evaluation_seconds,
    executed,
    kind_of,
    skipped,
)
from layerroute.analysis.skipping_tables import differences_table, main_table, sites_table
from layerroute.analysis.table import Table
from layerroute.analysis.timing import NOISY, spread
from layerroute.errors import UserError, nearest

CAPABILITY = "layer_skipping"
NEEDED = ("random", "periodic", STATIC)
"""Controls without which nothing can be said for routing."""
SAME_SKIP = 0.02
"""Arms that skip within so much of each other are compared as equals."""
SAME_FLOPS = 0.01
"""Arms that execute within so much of the same FLOPs are compared as equals."""
SAME_TIME = 0.05
"""Arms whose evaluation takes within so much of the same time are compared as equally fast."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SkippingComparison:
    """Arms of layer skipping.

    Attributes:
        arms: by kind.
        subject: the routed arm that the question is about, None where there is none.
        gaps: the subject against every other arm, by label.
        notes: what was told apart.
    """

    arms: tuple[Arm, ...]
    subject: Arm | None
    gaps: dict[str, Gap | None]
    notes: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by short name; that of equal cost only where arms can be read off at each other's cost."""
        some = {
            "equal_cost": equal_cost_table(self.equal_costs, [self.time_note] if self.timed else []),
            "positions": positions_table(self.arms),
        }
        return {
            "main": main_table(self),
            "differences": differences_table(self),
            "sites": sites_table(self.arms),
            **{name: table for name, table in some.items() if table is not None},
        }

    @cached_property
    def equal_costs(self) -> list[tuple[str, Cost, EqualCost]]:
        """Routing and controls at equal FLOPs executed, and, where times can be believed, at equal time."""
        routers, controls = self._at_rates(ROUTED), self._at_rates(*ORDER[ORDER.index(ROUTED) + 1 :])
        costs: list[tuple[str, Cost]] = [("FLOPs", executed)]
        if self.timed:
            costs.append(("time", evaluation_seconds))
        return [(word, cost, one) for word, cost in costs for one in equal_cost(routers, controls, cost)]

    def _at_rates(self, *kinds: str) -> dict[str, list[Arm]]:
        """Completed arms of these kinds, those together that differ in the rate alone; by the shortest label."""
        arms = [arm for arm in self.arms if arm.completed and kind_of(arm) in kinds]
        groups = alike_besides(arms, [RATE])
        return {
            min((arm.label for arm in group), key=lambda name: (len(name), name)): group for group in groups
        }

    @cached_property
    def time_spread(self) -> float | None:
        """How far times of equal work are apart, as a ratio; None where no two runs did equal work.

        Equal work is that of one arm's seeds, and, for each FLOP that they execute, that of arms whose layers are the
        same for all tokens.
        """
        runs = [(arm, run) for arm in self.arms for run in arm.completed]
        if len({machine(run) for _, run in runs}) > 1:
            return None
        groups: dict[str, list[float]] = {}
        for arm, run in runs:
            seconds, flops = (
                run.value("timing", "evaluation_seconds"),
                run.value("flops", "executed_per_token"),
            )
            if not seconds:
                continue
            groups.setdefault(arm.label, []).append(seconds)
            if flops and kind_of(arm) in (FULL, STATIC):
                groups.setdefault("static, by FLOPs", []).append(seconds / flops)
        return spread(groups.values())

    @property
    def timed(self) -> bool:
        """Whether times can be believed: equal work took equal time."""
        return self.time_spread is not None and self.time_spread <= NOISY

    @property
    def time_note(self) -> str:
        """What the times are worth."""
        what = "Time: wall time of each run's last evaluation, not measured in turn"
        if self.time_spread is None:
            return f"{what}; no two runs of one machine did equal work by which to judge it, so it is not compared."
        apart = f"equal work (seeds of one arm; static arms, by FLOPs) took times up to {number(self.time_spread, 2)}×"
        if self.timed:
            return f"{what}; {apart} apart."
        return (
            f"{what}, and the machine was busy with other work: {apart} apart. So times are not compared here; "
            "`layerroute bench` measures speed in turn."
        )

    @property
    def full(self) -> Arm | None:
        """The arm that never skips."""
        return next((arm for arm in self.arms if kind_of(arm) == FULL and arm.completed), None)

    def rivals(self) -> list[Arm]:
        """Arms that skip as much as the subject."""
        if self.subject is None or (own := skipped(self.subject)) is None:
            return []
        return [
            arm
            for arm in self.arms
            if arm is not self.subject
            and (share := skipped(arm)) is not None
            and share > 0
            and abs(share - own) <= SAME_SKIP
        ]

    def as_fast(self) -> list[Arm]:
        """Arms whose measured evaluation takes as long as the subject's; none where times cannot be believed."""
        return self._as_dear(evaluation_seconds, SAME_TIME) if self.timed else []

    def as_dear(self) -> list[Arm]:
        """Arms that execute as many FLOPs as the subject."""
        return self._as_dear(executed, SAME_FLOPS)

    def _as_dear(self, cost: Cost, tolerance: float) -> list[Arm]:
        own = None if self.subject is None else cost(self.subject)
        if not own:
            return []
        priced = [(arm, cost(arm)) for arm in self.arms if arm is not self.subject]
        return [arm for arm, paid in priced if paid is not None and abs(paid / own - 1) <= tolerance]

    @property
    def missing(self) -> list[str]:
        """Controls at the subject's skip that are not there."""
        there = {kind_of(arm) for arm in self.rivals()}
        return [name for name in NEEDED if name not in there]

    @property
    def outcome(self) -> str | None:
        """``wins`` if the routed arm beats every control at its skip, ``loses`` if one beats it, else what is open."""
        found = [gap.outcome for arm in self.rivals() if (gap := self.gaps.get(arm.label)) is not None]
        if not found or self.missing:
            return None
        return "loses" if "loses" in found else "cannot be told" if "cannot be told" in found else "wins"

    def _on_one_seed(self) -> str:
        """Which of the verdict's intervals tell nothing of other seeds."""
        gaps = {arm.label: gap for arm in self.rivals() if (gap := self.gaps.get(arm.label)) is not None}
        alone = [label for label, gap in gaps.items() if gap.seeds == 1]
        if not alone:
            return ""
        against = "" if len(alone) == len(gaps) else f" against {listing(alone)}"
        return f" One seed{against}: the intervals are over text, not over seeds."

    @property
    def verdict(self) -> str:
        """What can be said for the routed arm against each control at the same skip, wins and losses alike."""
        if self.subject is None:
            return "There is no completed routed arm, so nothing is said about routing."
        own = skipped(self.subject)
        parts = []
        for arm in self.rivals():
            gap = self.gaps.get(arm.label)
            if gap is None:
                parts.append(f"cannot be paired with {arm.label}")
                continue
            word = {"wins": "beats", "loses": "loses to"}.get(gap.outcome, "cannot be told from")
            interval = f"{signed(gap.mean)} nats, 95% {signed(gap.low)} to {signed(gap.high)}"
            if gap.outcome == "cannot be told" and gap.detectable is not None:
                interval += f"; a difference below about {number(gap.detectable)} would go unseen"
            parts.append(f"{word} {arm.label} ({interval})")
        text = f"{self.subject.label}, which skips {percent(own)} of routed compute, "
        text += (listing(parts) if parts else "has no control at the same skip to be held against") + "."
        text += self._at_equal_cost()
        text += self._on_one_seed()
        if self.missing:
            text += f" Missing at this skip: {listing(self.missing)}; nothing can be credited to routing yet."
        unfinished = [
            f"{arm.label} seed {run.seed} ({run.status})" for arm in self.arms for run in arm.unfinished
        ]
        if unfinished:
            text += f" Not completed, and in no number: {listing(unfinished)}."
        if not all(arm.causal for arm in self.arms):
            named = [arm.label for arm in self.arms if not arm.causal]
            text += f" Decisions of {listing(named)} are not causal: they may see later tokens."
        return text

    def _at_equal_cost(self) -> str:
        """The same against the controls of its skip, at equal FLOPs: what is said holds however one reads off."""
        assert self.subject is not None
        line = next(arms for arms in self._at_rates(ROUTED).values() if self.subject in arms)
        flops = [one for word, _, one in self.equal_costs if word == "FLOPs" and one.gap is not None]
        parts = []
        for arm in self.rivals():
            family = next((n for n, arms in self._at_rates(kind_of(arm)).items() if arm in arms), None)
            read = next((one for one in flops if one.control == arm.label and one.low in line), None)
            other = next((one for one in flops if one.at is self.subject and one.control == family), None)
            outcomes = {one.outcome for one in (read, other) if one is not None}
            if read is None or read.gap is None:
                continue
            word = (
                "beats"
                if "wins" in outcomes
                else "loses to"
                if "loses" in outcomes
                else "cannot be told from"
            )
            interval = f"{signed(read.gap.mean)} nats, 95% {signed(read.gap.low)} to {signed(read.gap.high)}"
            if read.outcome == "loses as read" and word == "cannot be told from":
                interval += ", which the straight line between its points may have made"
            parts.append(f"{word} {arm.label} ({interval})")
        return f" At the FLOPs that each of them executes it {listing(parts)}." if parts else ""

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, for ``--json``."""
        return {
            "capability": CAPABILITY,
            "subject": self.subject.label if self.subject else None,
            "verdict": self.verdict,
            "controls_missing": self.missing,
            "arms": [
                {
                    "arm": arm.label,
                    "kind": kind_of(arm),
                    "seeds": list(arm.seeds),
                    "skipped": skipped(arm),
                    "executed": executed(arm),
                    "validation_loss": arm.loss,
                    "subject_minus_this": None if (g := self.gaps.get(arm.label)) is None else vars(g),
                    "unfinished": [
                        {"run": run.record["run"], "status": run.status} for run in arm.unfinished
                    ],
                }
                for arm in self.arms
            ],
            "notes": list(self.notes),
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
        }


def compare_skipping(
    runs: Sequence[Run], *, subject: str | None = None, allow_different_data: bool = False
) -> SkippingComparison:
    """Compare the arms of layer-skipping runs.

    Args:
        runs: failed and unfinished ones are shown and never averaged in.
        subject: label of the routed arm that the question is about. Default: ``token``, else the first routed arm.
        allow_different_data: compare runs of different data nevertheless; they are then not paired.

    Raises:
        UserError: no run, an unknown subject, or different data.
    """
    if not runs:
        raise UserError("there is no run to compare: give run directories as `layerroute train` wrote them.")
    identities = {data_identity(run) for run in runs if run.value("data", "fingerprint") is not None}
    if len(identities) > 1 and not allow_different_data:
        raise UserError(
            f"the runs saw {plural(len(identities), 'data set')}, so their losses cannot be compared. Give runs of "
            "one, or --allow-different-data to see the tables nevertheless."
        )
    arms, notes = group_arms(runs)
    arms = tuple(
        sorted(arms, key=lambda arm: (ORDER.index(k) if (k := kind_of(arm)) in ORDER else 9, arm.label))
    )
    routed = [arm for arm in arms if kind_of(arm) == ROUTED and arm.completed]
    chosen = next((arm for arm in routed if arm.label == (subject or "token")), None)
    if subject is not None and chosen is None:
        raise UserError(
            f"there is no completed routed arm {subject!r}.{nearest(subject, [arm.label for arm in routed])}"
        )
    chosen = chosen or (routed[0] if routed else None)
    others = [arm.label for arm in routed if arm is not chosen]
    if others and chosen is not None:
        notes += (f"The question is asked of {chosen.label}; {listing(others)} shown as variants.",)
    gaps: dict[str, Gap | None] = {}
    if chosen is not None and len(identities) <= 1:
        gaps = {arm.label: paired_gap(chosen, arm) for arm in arms if arm is not chosen}
    return SkippingComparison(arms=arms, subject=chosen, gaps=gaps, notes=notes)
