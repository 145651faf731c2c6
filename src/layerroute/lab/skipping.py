"""Layer-skipping runs side by side: quality against compute really executed, paired by text and by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layerroute.errors import UserError
from layerroute.lab.arms import Arm, alike_besides, arm_named, group_arms
from layerroute.lab.equal_cost import EqualCost, as_they_are, equal_cost, equal_cost_table, outcome_of
from layerroute.lab.fairness import choose_subject, data_identity, machine, no_verdict
from layerroute.lab.format import listing, number, percent, plural, signed
from layerroute.lab.paired import Gap, paired_gap, why_unpaired
from layerroute.lab.positions import positions_table
from layerroute.lab.runs import Run
from layerroute.lab.skipping_arms import (
    FULL,
    ORDER,
    RATE,
    ROUTED,
    STATIC,
    executed,
    kind_of,
    skipped,
)
from layerroute.lab.skipping_tables import differences_table, main_table, runs_table, sites_table
from layerroute.lab.table import Table
from layerroute.lab.timing import NOISY, spread

CAPABILITY = "layer_skipping"
NEEDED = ("random", "periodic", STATIC)
"""Controls without which nothing can be said for routing."""
CONTROLS = ORDER[ORDER.index(ROUTED) + 1 :]


@dataclass(frozen=True, eq=False, kw_only=True)
class SkippingComparison:
    """Arms of layer skipping.

    Attributes:
        arms: by kind.
        subject: the routed arm that the question is about, None where there is none.
        baseline: the arm that all others are held against; None: the subject is held against all others.
        same_data: whether all runs saw the same data; if not, nothing is paired and no verdict is given.
        notes: what was told apart.
    """

    arms: tuple[Arm, ...]
    subject: Arm | None
    baseline: Arm | None = None
    same_data: bool = True
    notes: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by short name; that of equal cost only where arms can be read off at each other's cost."""
        some = {
            "equal_cost": equal_cost_table(self.equal_costs),
            "positions": positions_table(self.arms),
        }
        return {
            "main": main_table(self),
            "differences": differences_table(self),
            "sites": sites_table(self.arms),
            "runs": runs_table(self.arms),
            **{name: table for name, table in some.items() if table is not None},
        }

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, completed or not."""
        return tuple(run for arm in self.arms for run in arm.runs)

    @property
    def unfinished(self) -> tuple[Run, ...]:
        """Runs that are in no mean."""
        return tuple(run for run in self.runs if not run.completed)

    @property
    def unfinished_names(self) -> list[str]:
        """``arm seed 42 (failed)`` for each of them."""
        return [f"{arm.label} seed {run.seed} ({run.status})" for arm in self.arms for run in arm.unfinished]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all completed runs."""
        return tuple(sorted({seed for arm in self.arms for seed in arm.seeds}))

    @property
    def pairs(self) -> list[tuple[Arm, Arm]]:
        """What the table of differences shows, as (first, second): the first one's loss less the second one's."""
        one = self.baseline or self.subject
        others = [arm for arm in self.arms if arm is not one and arm.completed]
        return [] if one is None else [(arm, one) if self.baseline else (one, arm) for arm in others]

    @cached_property
    def gaps(self) -> dict[str, Gap | None]:
        """The differences of ``pairs``, by the label of the arm that is not the same in all of them."""
        place = 0 if self.baseline else 1
        return {pair[place].label: paired_gap(*pair) for pair in self.pairs} if self.same_data else {}

    @cached_property
    def equal_costs(self) -> list[EqualCost]:
        """Routing and controls at equal executed FLOPs."""
        if not self.same_data:
            return []
        return equal_cost(self._at_rates(ROUTED), self._at_rates(*CONTROLS))

    def _at_rates(self, *kinds: str) -> dict[str, list[Arm]]:
        """Completed arms of these kinds, those together that differ in the rate alone; by the shortest label."""
        arms = [arm for arm in self.arms if arm.completed and kind_of(arm) in kinds]
        groups = alike_besides(arms, [RATE])
        return {
            min((arm.label for arm in group), key=lambda name: (len(name), name)): group for group in groups
        }

    @cached_property
    def judged(self) -> list[tuple[Arm, list[EqualCost]]]:
        """The subject against the nearest arm of every kind of control at equal cost, or against the baseline alone.

        As they are where they cost the same, else read off, both ways where there are two; an empty list where
        neither is possible.
        """
        subject = self.subject
        if subject is None:
            return []
        if self.baseline is not None:
            return [(self.baseline, self._at_equal_cost(subject, [self.baseline]))]
        return [(family[0], self._at_equal_cost(subject, family)) for family in self._controls(subject)]

    def _controls(self, subject: Arm) -> list[list[Arm]]:
        """The arms of every kind of control, those first whose cost is nearest the subject's."""
        own = executed(subject) or 0.0
        families = self._at_rates(*CONTROLS).values()
        return [sorted(family, key=lambda arm: abs((executed(arm) or 0.0) - own)) for family in families]

    def _at_equal_cost(self, subject: Arm, family: Sequence[Arm]) -> list[EqualCost]:
        if not self.same_data:
            return []
        if not no_verdict(subject, family[0]):
            return [as_they_are(subject, family[0])]
        routed = [one for one in self.equal_costs if one.at in family and subject in (one.low, one.high)]
        control = [
            one
            for one in self.equal_costs
            if one.at is subject and one.low is not subject and (one.low in family or one.high in family)
        ]
        return [*sorted(routed, key=lambda one: family.index(one.at))[:1], *control]

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
        what = "Time: wall time of each run's last evaluation, not measured in turn; no verdict rests on it"
        if self.time_spread is None:
            return (
                f"{what}; no two runs of one machine did equal work by which to judge it, so it is not shown."
            )
        apart = f"equal work (seeds of one arm; static arms, by FLOPs) took times up to {number(self.time_spread, 2)}×"
        if self.timed:
            return f"{what}; {apart} apart."
        return (
            f"{what}, and the machine was busy with other work: {apart} apart. So times are not shown here; "
            "`layerroute bench` measures speed in turn."
        )

    @property
    def full(self) -> Arm | None:
        """The arm that never skips."""
        return next((arm for arm in self.arms if kind_of(arm) == FULL and arm.completed), None)

    @property
    def missing(self) -> list[str]:
        """Controls that the subject is not held against at equal cost."""
        if self.subject is None:
            return list(NEEDED)
        controls = self._controls(self.subject)
        there = {kind_of(family[0]) for family in controls if self._at_equal_cost(self.subject, family)}
        return [name for name in NEEDED if name not in there]

    @property
    def outcome(self) -> str | None:
        """``wins`` if the routed arm beats every control at equal cost, ``loses`` if one beats it, else what is open.

        None where a control is missing at its cost: there is no verdict.
        """
        found = [outcome_of(entries) for _, entries in self.judged if entries]
        if not found or (self.missing and self.baseline is None):
            return None
        return "loses" if "loses" in found else "cannot be told" if set(found) - {"wins"} else "wins"

    def _on_one_seed(self) -> str:
        """Which of the verdict's intervals tell nothing of other seeds."""
        gaps = {entries[0].control: entries[0].gap for _, entries in self.judged if entries}
        alone = [label for label, gap in gaps.items() if gap is not None and gap.seeds == 1]
        if not alone:
            return ""
        against = "" if len(alone) == len(gaps) else f" against {listing(alone)}"
        return f" One seed{against}: the intervals are over text, not over seeds."

    @property
    def verdict(self) -> str:
        """What can be said for the routed arm against each control at equal cost, wins and losses alike."""
        if self.subject is None:
            return "There is no completed routed arm, so nothing is said about routing."
        text = (
            f"{self.subject.label} skips {percent(skipped(self.subject))} of routed compute and executes "
            f"{percent(executed(self.subject))} of the plain model's FLOPs."
        )
        if not self.same_data:
            return f"{text} The runs saw different data, so there is no verdict."
        parts = [_phrase(arm, self.subject, entries) for arm, entries in self.judged if entries]
        text += f" At equal executed FLOPs it {listing(parts)}." if parts else ""
        without = [
            f"{arm.label} ({listing(no_verdict(self.subject, arm))})"
            for arm, entries in self.judged
            if not entries
        ]
        text += f" No verdict against {listing(without)}." if without else ""
        text += self._on_one_seed()
        if self.missing:
            text += f" Missing at its FLOPs: {listing(self.missing)}; nothing can be credited to routing yet."
        unfinished = [
            f"{arm.label} seed {run.seed} ({run.status})" for arm in self.arms for run in arm.unfinished
        ]
        if unfinished:
            text += f" Not completed, and in no number: {listing(unfinished)}."
        if not all(arm.causal for arm in self.arms):
            named = [arm.label for arm in self.arms if not arm.causal]
            text += f" Decisions of {listing(named)} are not causal: they may see later tokens."
        return text

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, for ``--json``."""
        return {
            "capability": CAPABILITY,
            "subject": self.subject.label if self.subject else None,
            "baseline": self.baseline.label if self.baseline else None,
            "outcome": self.outcome,
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
                    ("this_minus_baseline" if self.baseline else "subject_minus_this"): None
                    if (g := self.gaps.get(arm.label)) is None
                    else vars(g),
                    "unfinished": [
                        {"run": run.record["run"], "status": run.status} for run in arm.unfinished
                    ],
                }
                for arm in self.arms
            ],
            "notes": list(self.notes),
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
        }


def _phrase(rival: Arm, subject: Arm, entries: Sequence[EqualCost]) -> str:
    """``beats greedy (−0.02 nats, 95% −0.03 to −0.01)``: of the comparisons at equal cost the first one's numbers."""
    one = entries[0]
    if one.gap is None:
        return f"cannot be paired with {one.control} ({why_unpaired(subject, rival)})"
    outcome = outcome_of(entries)
    word = {"wins": "beats", "loses": "loses to"}.get(outcome, "cannot be told from")
    interval = f"{signed(one.gap.mean)} nats, 95% {signed(one.gap.low)} to {signed(one.gap.high)}"
    if one.low is not one.high:
        interval += f"; read off {one.how}"
    if outcome == "cannot be told":
        if any(entry.outcome.endswith("as read") for entry in entries):
            interval += ", and the straight line there may have made the difference"
        elif one.gap.detectable is not None:
            interval += f"; a difference below about {number(one.gap.detectable)} would go unseen"
    return f"{word} {one.control} ({interval})"


def compare_skipping(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    subject: str | None = None,
    allow_different_data: bool = False,
) -> SkippingComparison:
    """Compare the arms of layer-skipping runs.

    Args:
        runs: failed and unfinished ones are shown and never averaged in.
        baseline: label of the arm that all others are held against. Default: the subject is held against all others.
        subject: label of the routed arm that the question is about. Default: by the rule of ``choose_subject``.
        allow_different_data: compare runs of different data nevertheless; they are then not paired.

    Raises:
        UserError: no run, an unknown arm, the same one twice, or different data.
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
    against = None if baseline is None else arm_named(arms, baseline)
    routed = [arm for arm in arms if kind_of(arm) == ROUTED and arm.completed and arm is not against]
    controls = [arm for arm in arms if kind_of(arm) in CONTROLS]
    chosen, note = choose_subject(routed, [*routed, *controls], subject)
    return SkippingComparison(
        arms=arms, subject=chosen, baseline=against, same_data=len(identities) <= 1, notes=(*notes, *note)
    )
