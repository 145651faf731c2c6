"""One comparison of arms: what the terminal tables, the HTML report and the paper are all built from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from layerroute.errors import UserError
from layerroute.lab.agreement import agreement_table
from layerroute.lab.arms import Arm, alike_besides, arm_named, group_arms
from layerroute.lab.at_cost import at_cost_table, at_equal_cost
from layerroute.lab.controls import ControlCheck, check_control
from layerroute.lab.fairness import choose_subject, data_identity, no_verdict, served_apart, unequal
from layerroute.lab.format import listing, plural, plus_minus
from layerroute.lab.pairs import Pair, agreed, deciding, judge
from layerroute.lab.question import Question, question_of, questions
from layerroute.lab.runs import Run
from layerroute.lab.table import Table
from layerroute.lab.tables import differences, main_table, positions_table
from layerroute.lab.tokens import arms_table, groups_table, layers_table, token_groups
from layerroute.outcomes import Outcome

DIFFERENT_DATA = "The runs saw different data or tokenizers: their losses are NOT comparable."


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Arms side by side.

    ``subject`` is the arm with a learned router that the question is about, ``baseline`` what it is held against;
    either may be None where no such arm is there. Without ``same_data`` there is no verdict. ``notes`` say what was
    told apart.
    """

    question: Question
    arms: tuple[Arm, ...]
    subject: Arm | None
    baseline: Arm | None = None
    same_data: bool = True
    notes: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, completed or not."""
        return tuple(run for arm in self.arms for run in arm.runs)

    @property
    def completed(self) -> tuple[Arm, ...]:
        """Arms with a completed run."""
        return tuple(arm for arm in self.arms if arm.completed)

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
    def yardstick(self) -> Arm | None:
        """The arm that the others stand beside in tables."""
        return self.baseline or (self.subject if self.question.against == "controls" else None)

    @cached_property
    def beside(self) -> tuple[Question, ...]:
        """What else is asked of these arms."""
        return tuple(
            other
            for other in questions()
            if other.capability == self.question.capability and other.asked and other.asked(self.arms)
        )

    @cached_property
    def pairs(self) -> list[Pair]:
        """What the table of differences shows: the primary comparison first, where there is one."""
        subject, baseline = self.subject, self.baseline
        if self.question.against == "controls":
            one = self.yardstick
            others = [arm for arm in self.completed if one and arm is not one]
            found = [(arm, one) if baseline else (one, arm) for arm in others if one]
            return judge(self.question, [(*pair, ()) for pair in found], primary=False)
        found = [(subject, baseline)] if subject and baseline else []
        rest = [arm for arm in self.arms if arm not in (subject, baseline)]
        found += [(subject, arm) for arm in rest if subject]
        found += [(arm, baseline) for arm in rest if baseline]
        return judge(self.question, [(*pair, ()) for pair in found], primary=bool(subject and baseline))

    @property
    def primary(self) -> Pair | None:
        """The comparison that answers the question, where it is one."""
        return next((pair for pair in self.pairs if pair.primary), None)

    @cached_property
    def controls(self) -> list[ControlCheck]:
        """What the claim must be held against, and which arms there are."""
        return [check_control(one, self.arms, self.subject) for one in self.question.controls]

    @cached_property
    def missing(self) -> list[str]:
        """Names of the controls that are missing."""
        if self.question.against == "baseline":
            return [check.control.name for check in self.controls if check.missing]
        there = {arm.kind for arm, entries in self._held if entries}
        return [one.name for one in self.question.controls if not there & set(one.kinds or ())]

    @cached_property
    def equal_costs(self) -> list[Pair]:
        """Routing and controls at equal executed FLOPs, read off at each other's cost."""
        if not self.same_data or self.question.rate_key is None:
            return []
        return at_equal_cost(self.question, self._at_rates(learned=True), self._at_rates(learned=False))

    def _at_rates(self, *, learned: bool) -> list[list[Arm]]:
        """Completed routed arms, or controls: those together that differ in the rate alone."""
        arms = [arm for arm in self.completed if (arm.kind.learned if learned else arm.kind.control)]
        key = self.question.rate_key
        return [[arm] for arm in arms] if key is None else alike_besides(arms, [key])

    @cached_property
    def _held(self) -> list[tuple[Arm, list[Pair]]]:
        """The subject against the nearest arm of every control at equal cost.

        As they are where they cost the same, else read off, both ways where there are two; an empty list where neither
        is possible.
        """
        subject = self.subject
        if subject is None:
            return []
        own = subject.executed_share or 0.0
        families = [
            sorted(family, key=lambda arm: abs((arm.executed_share or 0.0) - own))
            for family in self._at_rates(learned=False)
        ]
        return [(family[0], self._at_equal_cost(subject, family)) for family in families]

    @cached_property
    def judged(self) -> list[tuple[Arm, list[Pair]]]:
        """What the verdict against controls rests on: all of them, or the baseline alone."""
        if self.subject is None or self.baseline is None:
            return self._held
        return [(self.baseline, self._at_equal_cost(self.subject, [self.baseline]))]

    def _at_equal_cost(self, subject: Arm, family: Sequence[Arm]) -> list[Pair]:
        if not self.same_data:
            return []
        if not no_verdict(subject, family[0]):
            return judge(self.question, [(subject, family[0], ())], primary=False)
        found = [
            one
            for one in self.equal_costs
            if subject in one.ends("subject") and any(arm in family for arm in one.ends("rival"))
        ]
        read = [one for one in found if one.reading and one.reading.side == "rival"]
        beside = [one for one in found if one not in read]
        return [*sorted(beside, key=lambda one: family.index(one.rival))[:1], *read]

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by short name; those that have nothing to show only where the question says so."""
        found: dict[str, Table | None] = {"main": main_table(self), "differences": differences(self.pairs)}
        for question in (self.question, *self.beside):
            found |= question.tables(self) if question.tables else {}
        found |= {
            "positions": positions_table(self.arms),
            "equal_cost": at_cost_table(
                self.equal_costs,
                name="Table of equal cost",
                title="Validation loss of routing less that of controls at equal executed FLOPs",
                gain="Loss falls",
            ),
        }
        notes = () if self.same_data else (DIFFERENT_DATA,)
        return {
            name: replace(table, notes=(*notes, *table.notes))
            for name, table in found.items()
            if table is not None
        }

    @cached_property
    def token_tables(self) -> dict[str, Table]:
        """What the decisions on single tokens show: of the subject, of every arm, and between seeds."""
        runs = {arm.label: arm.told for arm in self.arms if arm.kind.routed}
        groups = {
            label: token_groups(run.token_routes) for label, run in runs.items() if run and run.token_routes
        }
        own = groups.get(self.subject.label, {}) if self.subject else {}
        paths = [arm.paths[1] for arm in self.arms if arm.label in groups]
        expensive = self.subject.paths[1] if self.subject else next(iter(paths), "")
        found = {
            "kinds": groups_table(own, expensive),
            "kinds_by_layer": layers_table(own, expensive),
            "kinds_by_arm": arms_table(groups, expensive),
            "agreement": agreement_table(self.arms),
        }
        return {name: table for name, table in found.items() if table is not None}

    @property
    def outcome(self) -> Outcome | None:
        """The verdict on the primary comparison; None where there is nothing to compare.

        Against controls: ``wins`` if the subject beats every one at equal cost, ``loses`` if one beats it, else what is
        open; None where a control is missing at its cost.
        """
        if self.question.against == "baseline":
            return None if self.primary is None else self.primary.outcome
        found = {agreed(entries) for _, entries in self.judged if entries}
        if not found or (self.missing and self.baseline is None):
            return None
        if Outcome.LOSES in found:
            return Outcome.LOSES
        return Outcome.WINS if found == {Outcome.WINS} else Outcome.NO_DIFFERENCE

    @property
    def verdict(self) -> str:
        """The answer, with its caveats, in a few sentences."""
        return " ".join(filter(None, [self.answer, *self.answers_beside, *self.caveats]))

    @property
    def answers_beside(self) -> list[str]:
        """The answers to what is asked beside, a sentence each."""
        return [text for question in self.beside if (text := question.answer(self))]

    @property
    def answer(self) -> str:
        """The answer in a sentence or two; what there is, where none is possible."""
        if self.question.against == "controls":
            return self._against_controls()
        if self.primary is not None:
            return self.primary.sentence
        if not self.completed:
            return "No run completed, so there is nothing to compare."
        results = listing([f"{arm.label} {loss_text(arm)}" for arm in self.completed])
        if len(self.arms) == 1:
            return f"There is only one arm, so nothing is compared: final validation loss of {results}."
        return (
            f"There is no pair of a routed arm and a baseline to compare; final validation loss: {results}."
        )

    def _against_controls(self) -> str:
        """What can be said for the subject against each control at equal cost, wins and losses alike."""
        subject = self.subject
        if subject is None:
            return "There is no completed routed arm, so nothing is said about routing."
        said = [self.question.opening(subject)]
        if not self.same_data:
            return f"{said[0]} The runs saw different data, so there is no verdict.".strip()
        told = {arm: entries for arm, entries in self.judged if entries}
        if told:
            parts = [_phrase(entries) for entries in told.values()]
            said.append(f"At equal executed FLOPs it {listing(parts)}.")
        without = [
            f"{arm.label} ({listing(no_verdict(subject, arm))})"
            for arm, entries in self.judged
            if not entries
        ]
        if without:
            said.append(f"No verdict against {listing(without)}.")
        gaps = {entries[0].rival.label: entries[0].difference for entries in told.values()}
        alone = [label for label, gap in gaps.items() if gap is not None and len(gap.seeds) == 1]
        if alone:
            against = "" if len(alone) == len(gaps) else f" against {listing(alone)}"
            said.append(f"One seed{against}: the intervals are over text, not over seeds.")
        return " ".join(filter(None, said))

    @property
    def caveats(self) -> list[str]:
        """What the answer does not carry: unequal arms, missing controls, runs that did not complete."""
        found: list[str] = []
        if self.question.against == "controls" and (self.subject is None or not self.same_data):
            return found
        if self.primary is not None:
            arms = self.primary.subject, self.primary.rival
            differs = [phrase for phrase in unequal(*arms) if phrase not in no_verdict(*arms)]
            if differs:
                found.append(
                    f"The arms are not equal besides: {self.primary.subject.label} has {listing(differs)}."
                )
        if self.missing and self.question.against == "controls":
            found.append(
                f"Missing at its FLOPs: {listing(self.missing)}; nothing can be credited to routing yet."
            )
        elif self.subject is not None and self.missing:
            certain = self.primary is not None and self.primary.outcome.certain
            weight = ", so a difference cannot yet be credited to routing" if certain else ""
            number = sum(not one.claim for one in self.question.controls)
            found.append(
                f"{plural(len(self.missing), 'control')} of {number} "
                f"{'is' if len(self.missing) == 1 else 'are'} missing{weight}: {listing(self.missing)}."
            )
        if self.unfinished:
            found.append(f"Not completed, and in no number: {listing(self.unfinished_names)}.")
        if not self.same_data:
            found.append("The runs saw different data or tokenizers.")
        not_causal = [arm.label for arm in self.arms if not arm.causal]
        found += [text for arm in self.arms if (text := served_apart(arm))]
        if not_causal:
            found.append(f"Decisions of {listing(not_causal)} are not causal: they may see later tokens.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, for ``--json``."""
        return {
            "capability": self.question.capability,
            "baseline": self.baseline.label if self.baseline else None,
            "subject": self.subject.label if self.subject else None,
            "outcome": str(self.outcome) if self.outcome else None,
            "verdict": self.verdict,
            "same_data": self.same_data,
            **self.question.facts(self),
            "controls_missing": self.missing,
            "arms": [
                {
                    "arm": arm.label,
                    "kind": str(arm.kind),
                    "seeds": list(arm.seeds),
                    "validation_loss": arm.loss,
                    **self.question.arm_facts(self, arm),
                    "unfinished": [
                        {"run": run.record["run"], "status": run.status, "error": run.value("error")}
                        for run in arm.unfinished
                    ],
                }
                for arm in self.arms
            ],
            "notes": list(self.notes),
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
        }


def _phrase(readings: Sequence[Pair]) -> str:
    """``beats greedy (−0.02 nats, 95% −0.03 to −0.01)``: numbers of the reading that decides."""
    one = deciding(readings)
    if one.outcome.certain and one.outcome is not agreed(readings):
        return f"cannot be told from {one.rival.label} (it wins read off one way, and loses the other)"
    return one.phrase


def loss_text(arm: Arm) -> str:
    """An arm's final validation loss with its interval."""
    estimate = arm.estimate("metrics", "validation_loss")
    return plus_minus(estimate.mean, estimate.half_width) if estimate else "no completed run"


def compare(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    subject: str | None = None,
    allow_different_data: bool = False,
    question: Question | None = None,
) -> Comparison:
    """Compare the arms of ``runs``.

    Args:
        runs: as `load_runs` gives them; failed and unfinished ones are shown and never averaged in.
        baseline: label of the arm that the others are held against. Default, where the question is asked against one:
            the arm named ``baseline``, else the first of the question's ``baselines``, else the first arm without a
            learned router; of these first one that is treated as ``subject`` is and executes as many FLOPs, so that
            there can be a verdict. Else none: the subject is held against all others.
        subject: label of the routed arm that the question is about. Default: by the rule of ``choose_subject``.
        allow_different_data: compare runs with different data fingerprints or tokenizers nevertheless; every table
            then says so, and no verdict is given.
        question: default: that of the runs' capability.

    Raises:
        UserError: no run; different capabilities; different data; an unknown arm; a seed twice in an arm.
    """
    question = question or question_of(runs)
    same_data = _check_data(runs, allow_different_data)
    arms, notes = group_arms(runs, question.kind_of)
    order = {kind: place for place, kind in enumerate(question.kinds)}
    named = question.against == "baseline"
    arms = tuple(
        sorted(
            arms,
            key=lambda arm: (named and arm.label != "baseline", order.get(arm.kind, len(order)), arm.label),
        )
    )
    wanted = None if baseline is None else arm_named(arms, baseline)
    learned = [arm for arm in arms if arm.kind.learned and arm is not wanted and (named or arm.completed)]
    rivals = arms if named else [*learned, *(arm for arm in arms if arm.kind.control)]
    asked, note = choose_subject(learned, rivals, subject)
    chosen = _baseline(question, arms, asked) if named and wanted is None else wanted
    return Comparison(
        question=question,
        arms=arms,
        subject=asked,
        baseline=chosen,
        same_data=same_data,
        notes=(*notes, *note),
    )


def _check_data(runs: Sequence[Run], allowed: bool) -> bool:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.value("data", "fingerprint") is not None:
            groups.setdefault(data_identity(run), []).append(run)
    if len(groups) <= 1:
        return True
    if not allowed:
        shown = "; ".join(
            f"{listing(sorted({run.arm for run in members}))} on {members[0].value('data', 'source')} "
            f"(fingerprint {fingerprint[:12]}, tokenizer {tokenizer})"
            for (fingerprint, tokenizer), members in groups.items()
        )
        raise UserError(
            f"the runs saw different data, so their losses cannot be compared: {shown}. Give runs of one "
            "data set, or --allow-different-data to see the tables nevertheless."
        )
    return False


def _baseline(question: Question, arms: Sequence[Arm], subject: Arm | None) -> Arm | None:
    if len(arms) < 2:
        return None
    named = [arm for arm in arms if arm.label == "baseline"]
    candidates = [*named, *(arm for arm in arms if arm.kind in question.baselines)] or [
        arm for arm in arms if not arm.kind.learned
    ]
    fair = [arm for arm in candidates if subject and arm.completed and not no_verdict(subject, arm)]
    return next(iter(fair or candidates), None)
