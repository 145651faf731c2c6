"""One comparison of arms: what the terminal tables, the HTML report and the paper are all built from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from layerroute.errors import UserError
from layerroute.lab import tables, tables_cost
from layerroute.lab.arms import Arm, Kind, arm_named, group_arms
from layerroute.lab.controls import ControlCheck, check_controls, missing_controls
from layerroute.lab.fairness import choose_subject, data_identity, no_verdict, unequal
from layerroute.lab.format import listing, number, plural
from layerroute.lab.positions import positions_table
from layerroute.lab.recall import (
    RecallPair,
    recall_differences,
    recall_pairs,
    recall_sentence,
    recall_table,
)
from layerroute.lab.recall_length import recall_distances, recall_lengths
from layerroute.lab.routing import routing_sentence
from layerroute.lab.runs import Run
from layerroute.lab.settings import settings_table
from layerroute.lab.table import Table
from layerroute.lab.verdict import Outcome, Pair, judge_pairs, loss_text

# Why a difference between two arms is not yet the work of routing.
CREDIT = "cannot yet be credited to routing"


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Arms side by side.

    ``subject`` is the dynamic arm that the question is about, ``baseline`` what it is held against; either may be
    None where no such arm is there.
    """

    arms: tuple[Arm, ...]
    baseline: Arm | None
    subject: Arm | None
    pairs: tuple[Pair, ...]
    controls: tuple[ControlCheck, ...]
    same_data: bool
    notes: tuple[str, ...]

    @property
    def primary(self) -> Pair | None:
        """The comparison that answers the question."""
        return next((pair for pair in self.pairs if pair.primary), None)

    @property
    def outcome(self) -> Outcome | None:
        """The verdict on the primary comparison; None where there is nothing to compare."""
        return None if self.primary is None else self.primary.outcome

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
    def missing(self) -> list[str]:
        """Names of the controls that are missing."""
        return missing_controls(self.controls)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of all completed runs."""
        return tuple(sorted({seed for arm in self.arms for seed in arm.seeds}))

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by short name; those of recall and of places only where they were measured."""
        recall = recall_table(self.arms)
        found = {} if recall is None else {"recall": recall}
        if self.recall_pairs:
            found["recall_differences"] = recall_differences(self.recall_pairs)
        lengths = recall_lengths(self.arms)
        if lengths is not None:
            found["recall_lengths"] = lengths
        distances = recall_distances(self.arms)
        if distances is not None:
            found["recall_distances"] = distances
        positions = positions_table(self.arms)
        if positions is not None:
            found["positions"] = positions
        return {
            "main": tables.main_results(self.arms, self.baseline, self.same_data),
            "differences": tables.differences(self.pairs),
            "routing": tables.routing_statistics(self.arms),
            "efficiency": tables_cost.efficiency(self.arms, self.baseline),
            "fairness": tables_cost.fairness(self.arms, self.baseline, self.same_data),
            "parts": tables_cost.by_part(self.arms),
            "settings": settings_table(self.arms),
            "controls": tables_cost.controls_table(self.controls, self.subject),
            "runs": tables_cost.runs_table(self.arms),
            **found,
        }

    @cached_property
    def recall_pairs(self) -> list[RecallPair]:
        """Learned routers against their controls in recall; empty where it was not measured."""
        return recall_pairs(self.arms)

    @property
    def recall(self) -> str:
        """The answer about recall in a sentence; empty where it was not measured."""
        return recall_sentence(self.recall_pairs, self.subject)

    @property
    def verdict(self) -> str:
        """The answer, with its caveats, in a few sentences."""
        return " ".join(filter(None, [self.answer, self.recall, *self.caveats]))

    @property
    def answer(self) -> str:
        """The answer in one sentence or two, from the primary comparison; what there is, where none is possible."""
        if self.primary is not None:
            return self.primary.sentence()
        completed = [arm for arm in self.arms if arm.completed]
        if not completed:
            return "No run completed, so there is nothing to compare."
        results = listing([f"{arm.label} {loss_text(arm)}" for arm in completed])
        if len(self.arms) == 1:
            return f"There is only one arm, so nothing is compared: final validation loss of {results}."
        return (
            f"There is no pair of a routed arm and a baseline to compare; final validation loss: {results}."
        )

    @property
    def caveats(self) -> list[str]:
        """What the answer does not carry: unequal arms, missing controls, runs that did not complete."""
        found = []
        if self.primary is not None:
            arms = self.primary.subject, self.primary.rival
            differs = [phrase for phrase in unequal(*arms) if phrase not in no_verdict(*arms)]
            if differs:
                found.append(
                    f"The arms are not equal besides: {self.primary.subject.label} has {listing(differs)}."
                )
        if self.subject is not None and self.missing:
            weight = f", so a difference {CREDIT}" if self.outcome and self.outcome.certain else ""
            found.append(
                f"{plural(len(self.missing), 'control')} of {len(self.controls) - 1} "
                f"{'is' if len(self.missing) == 1 else 'are'} missing{weight}: {listing(self.missing)}."
            )
        if self.unfinished:
            found.append(f"Not completed, and in no number: {listing(self.unfinished_names)}.")
        if not self.same_data:
            found.append("The runs saw different data or tokenizers.")
        not_causal = [arm.label for arm in self.arms if not arm.causal]
        if not_causal:
            found.append(f"Decisions of {listing(not_causal)} are not causal: they may see later tokens.")
        return found

    @property
    def bigram(self) -> str:
        """How the arms stand against the bigram model; empty where no record has its loss."""
        losses = tables.bigram_losses(self.arms)
        if not losses:
            return ""
        behind = [arm.label for arm in self.arms if arm.loss and max(arm.loss.values()) >= min(losses)]
        shown = listing([number(loss) for loss in losses])
        if behind:
            return (
                f"{listing(behind)} did not beat a bigram model with back-off ({shown} nats) with every seed."
            )
        if not any(arm.loss for arm in self.arms):
            return f"A bigram model with back-off, fitted on the same training tokens, reaches {shown} nats."
        return (
            "Every completed run beats a bigram model with back-off fitted on the same training tokens "
            f"({shown} nats)."
        )

    @property
    def routing_sentences(self) -> list[str]:
        """How each routed arm with a learned router spread its tokens; first the arm that the answer is about."""
        learned = sorted(
            (arm for arm in self.arms if arm.kind is Kind.DYNAMIC), key=lambda arm: arm is not self.subject
        )
        return [text for arm in learned if (text := routing_sentence(arm))]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, for ``--json``."""
        return {
            "baseline": self.baseline.label if self.baseline else None,
            "subject": self.subject.label if self.subject else None,
            "outcome": str(self.outcome) if self.outcome else None,
            "verdict": self.verdict,
            "same_data": self.same_data,
            "bigram_loss": tables.bigram_losses(self.arms),
            "controls_missing": self.missing,
            "arms": [
                {
                    "arm": arm.label,
                    "kind": str(arm.kind),
                    "seeds": list(arm.seeds),
                    "validation_loss": arm.loss,
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


def compare_runs(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    subject: str | None = None,
    allow_different_data: bool = False,
) -> Comparison:
    """Compare the arms of ``runs``.

    Args:
        runs: as `load_runs` gives them; failed and unfinished ones are shown and never averaged in.
        baseline: arm that the others are held against. Default: the arm named ``baseline``, else the first static
            arm, else the first arm without a learned router; of these first one that is treated as ``subject`` is and
            executes as many FLOPs, so that there can be a verdict.
        subject: the dynamic arm that the question is about. Default: by the rule of ``choose_subject``.
        allow_different_data: compare runs with different data fingerprints or tokenizers nevertheless; every table
            then says so, and no verdict is given.

    Raises:
        UserError: no run; different capabilities; different data; an unknown baseline; a seed twice in an arm.
    """
    if not runs:
        raise UserError("there is no run to compare: give run directories as `layerroute train` wrote them.")
    capabilities = sorted({str(run.record["capability"]) for run in runs})
    if len(capabilities) > 1:
        raise UserError(f"runs of {listing(capabilities)} answer different questions: compare them apart.")
    same_data = _check_data(runs, allow_different_data)
    arms, notes = group_arms(runs)
    wanted = None if baseline is None else arm_named(arms, baseline)
    asked, note = choose_subject(
        [arm for arm in arms if arm.kind is Kind.DYNAMIC and arm is not wanted], arms, subject
    )
    chosen = wanted or _baseline(arms, asked)
    primary = (asked, chosen) if asked and chosen else None
    secondary = [(asked, arm) for arm in arms if asked and arm not in (asked, chosen)]
    secondary += [(arm, chosen) for arm in arms if chosen and arm not in (asked, chosen)]
    return Comparison(
        arms=arms,
        baseline=chosen,
        subject=asked,
        pairs=tuple(judge_pairs(primary, secondary)),
        controls=tuple(check_controls(arms, asked)),
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


def _baseline(arms: Sequence[Arm], subject: Arm | None) -> Arm | None:
    if len(arms) < 2:
        return None
    named = [arm for arm in arms if arm.label == "baseline"]
    static = [arm for arm in arms if arm.kind is Kind.STATIC]
    plain = [arm for arm in arms if arm.kind is not Kind.DYNAMIC]
    candidates = [*named, *static] or plain
    fair = [arm for arm in candidates if subject and arm.completed and not no_verdict(subject, arm)]
    return next(iter(fair or candidates), None)
