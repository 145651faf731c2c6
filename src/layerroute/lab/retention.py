"""What routed models keep of their base's quality: per document, paired, with bootstrap intervals over documents."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.errors import UserError
from layerroute.lab.format import MISSING, number, percent, points, signed
from layerroute.lab.statistics import DRAWS, bootstrap
from layerroute.lab.table import Cell, Field, Table, cells, figures, interval, plain, words
from layerroute.outcomes import SAME_COST_TEXT, Outcome, outcome_of, same_cost

Floats = NDArray[np.float64]

PERPLEXITY = "perplexity"
"""The one metric that is exp of a mean of losses; all others are shares of documents."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one model scored.

    Attributes:
        label: of the model in tables.
        skipped: share of the routed compute that was skipped while it was scored; 0 for the base.
        values: by (task, metric), a number for each document (of perplexity: its loss in nats), in one order for all
            models.
        executed: by (task, metric), forward FLOPs that were executed for all its documents; missing where they were not
            counted: there is then no verdict.
    """

    label: str
    skipped: float | None
    values: Mapping[tuple[str, str], Sequence[float]]
    executed: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One model against another on one metric.

    ``value`` and ``reference`` are the two scores. ``retained`` is the share that is kept, of perplexity reference /
    value, so that more is better everywhere; ``low`` and ``high`` its 95 % bootstrap interval over documents, which
    are drawn for both models alike. ``difference`` is value − reference, of perplexity in nats of loss, with
    ``difference_low`` and ``difference_high``. One document has no interval: these ends are None. ``executed`` and
    ``executed_reference`` are the FLOPs that the two executed on these very documents, as shares of the base's.
    """

    task: str
    metric: str
    model: str
    against: str
    documents: int
    value: float
    reference: float
    retained: float | None
    low: float | None
    high: float | None
    difference: float
    difference_low: float | None
    difference_high: float | None
    executed: float | None = None
    executed_reference: float | None = None

    @property
    def outcome(self) -> Outcome:
        """What the interval of the difference says; no verdict where the two did not execute as many FLOPs."""
        return outcome_of(
            (self.difference_low, self.difference_high),
            lower_is_better=self.metric == PERPLEXITY,
            barred=None if same_cost(self.executed, self.executed_reference) else Outcome.UNEQUAL_COST,
        )

    @property
    def better(self) -> str:
        """The outcome in a word: ``better``, ``worse``, ``cannot be told``, or why there is no verdict."""
        if self.outcome is Outcome.UNEQUAL_COST:
            counted = self.executed is not None and self.executed_reference is not None
            return f"no verdict: {'unequal FLOPs' if counted else 'FLOPs not counted'}"
        return {Outcome.WINS: "better", Outcome.LOSES: "worse"}.get(self.outcome, str(Outcome.NO_DIFFERENCE))


def change(model: Scores, reference: Scores, task: str, metric: str, *, draws: int = DRAWS) -> Change:
    """Compare two models on the same documents.

    Raises:
        UserError: they were not scored on the same number of documents.
    """
    ours, theirs = (
        np.asarray(scores.values[task, metric], dtype=np.float64) for scores in (model, reference)
    )
    if ours.shape != theirs.shape or not len(ours):
        raise UserError(
            f"{model.label} has {len(ours)} documents of {task} and {reference.label} {len(theirs)}: score both on the "
            "same"
        )
    low, high = bootstrap(ours - theirs, draws=draws).tolist()
    alone = len(ours) == 1
    kept: float | None
    bounds: tuple[float | None, float | None]
    if metric == PERPLEXITY:
        shown = float(np.exp(ours.mean())), float(np.exp(theirs.mean()))
        kept, bounds = shown[1] / shown[0], (math.exp(-high), math.exp(-low))
    else:
        shown = float(ours.mean()), float(theirs.mean())
        kept, bounds = None, (None, None)
        with suppress(ZeroDivisionError):
            bounds = tuple(np.maximum(bootstrap(ours, theirs, statistic=_ratio, draws=draws), 0.0).tolist())
            kept = shown[0] / shown[1]
    return Change(
        task=task,
        metric=metric,
        model=model.label,
        against=reference.label,
        documents=len(ours),
        value=shown[0],
        reference=shown[1],
        retained=kept,
        low=None if alone else bounds[0],
        high=None if alone else bounds[1],
        difference=float(ours.mean() - theirs.mean()),
        difference_low=None if alone else low,
        difference_high=None if alone else high,
    )


def _ratio(one: Floats, other: Floats, axis: int) -> Floats:
    below = other.mean(axis=axis)
    if not np.all(below > 0):
        raise ZeroDivisionError("a score of 0 has no share that is kept")
    found: Floats = one.mean(axis=axis) / below
    return found


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Models against their base, and the first of them against the others."""

    base: Scores
    models: tuple[Scores, ...]
    kept: tuple[Change, ...]
    against_others: tuple[Change, ...]

    @property
    def table(self) -> Table:
        """Scores and what is retained, one row a model, two columns a metric."""
        by = {(c.model, c.task, c.metric): c for c in self.kept}
        fields: list[Field[Scores]] = [
            words("Model", lambda scores: scores.label),
            figures("Skipped", lambda scores: scores.skipped, percent),
        ]

        def columns(task: str, metric: str) -> list[Field[Scores]]:
            return [
                figures(
                    f"{task} {metric}",
                    lambda scores: _score(scores.values[task, metric], metric),
                    lambda value: number(value, 2) if metric == PERPLEXITY else percent(value),
                ),
                cells("Retained", lambda scores: _kept(by.get((scores.label, task, metric)))),
            ]

        for measure in self.base.values:
            fields += columns(*measure)
        return Table.of(
            "Table of retention",
            "Scores, and what is retained of those of the base",
            fields,
            (self.base, *self.models),
            notes=[
                "Retained: score / base's, of perplexity base's / score, with the 95% bootstrap interval over "
                "documents, drawn for both alike. Skipped: share of routed compute, measured on what was scored."
            ],
        )

    @property
    def differences(self) -> Table:
        """The first model less each other one."""
        return Table.of(
            "Table of differences",
            "The first model less each other one, on the same documents",
            [
                words("Comparison", lambda c: f"{c.model} − {c.against}"),
                words("Measure", lambda c: f"{c.task} {c.metric}"),
                figures("Documents", lambda c: c.documents, plain),
                cells("Δ", lambda c: Cell(_delta(c.difference, c.metric), c.difference)),
                cells(
                    "95% interval",
                    lambda c: interval(
                        c.difference_low, c.difference_high, lambda end: _delta(end, c.metric)
                    ),
                ),
                cells("FLOPs", lambda c: f"{percent(c.executed)}, {percent(c.executed_reference)}"),
                words("The first is", lambda c: c.better),
            ],
            self.against_others,
            notes=[
                "Points of accuracy; of perplexity nats of loss (negative is better). The interval is a bootstrap over "
                "documents and says nothing of other training runs; it is not corrected for the number of rows. FLOPs: "
                "executed on these documents by the first and by the other, of the base's. A verdict only "
                f"at equal cost: {SAME_COST_TEXT}; nothing is read off between models."
            ],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "base": self.base.label,
            "skipped": {scores.label: scores.skipped for scores in (self.base, *self.models)},
            "retained": [asdict(c) for c in self.kept],
            "differences": [{**asdict(c), "outcome": c.better} for c in self.against_others],
        }


def retention(
    base: Scores, models: Sequence[Scores], at_cost: Mapping[str, Scores] | None = None
) -> Retention:
    """Hold every model against the base, and the first against the others.

    Args:
        at_cost: by label of another model, the first as it was served at the FLOPs of that one; where there is such,
            it is held against the other in place of the first.

    Raises:
        UserError: they were not scored on the same documents.
    """
    at_cost = at_cost or {}
    shown = [*models, *at_cost.values()]
    for scores in shown:
        if list(scores.values) != list(base.values):
            raise UserError(f"{scores.label} and {base.label} were not scored on the same tasks")

    def held(scores: Scores, against: Scores, measure: tuple[str, str]) -> Change:
        ours, theirs = (_share(one, base, measure) for one in (scores, against))
        return replace(change(scores, against, *measure), executed=ours, executed_reference=theirs)

    kept = [held(scores, base, measure) for scores in shown for measure in base.values]
    others = [
        held(at_cost.get(rival.label, models[0]), rival, measure)
        for rival in models[1:]
        for measure in base.values
    ]
    return Retention(base=base, models=tuple(shown), kept=tuple(kept), against_others=tuple(others))


def _share(scores: Scores, base: Scores, measure: tuple[str, str]) -> float | None:
    done, whole = scores.executed.get(measure), base.executed.get(measure)
    return None if done is None or not whole else done / whole


def _score(values: Sequence[float], metric: str) -> float:
    mean = float(np.mean(values))
    return float(np.exp(mean)) if metric == PERPLEXITY else mean


def _kept(found: Change | None) -> Cell:
    if found is None or found.retained is None:
        return Cell(MISSING)
    ends = "" if found.low is None else f" ({interval(found.low, found.high, percent)})"
    return Cell(f"{percent(found.retained)}{ends}", found.retained)


def _delta(value: float | None, metric: str) -> str:
    return signed(value, 3) if metric == PERPLEXITY else points(value)
