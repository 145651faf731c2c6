"""What routed models keep of their base's quality: per document, paired, with bootstrap intervals over documents."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.errors import UserError
from layerroute.lab.fairness import SAME_COST_TEXT, same_cost
from layerroute.lab.format import MISSING, number, percent, points, signed
from layerroute.lab.table import Cell, Column, Row, Table

Floats = NDArray[np.float64]

DRAWS = 10_000
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
    ``difference_low`` and ``difference_high``. ``executed`` and ``executed_reference`` are the FLOPs that the two
    executed on these very documents, as shares of the base's.
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
    difference_low: float
    difference_high: float
    executed: float | None = None
    executed_reference: float | None = None

    @property
    def better(self) -> str:
        """``better``, ``worse`` or ``cannot be told``: whether the interval of the difference is on one side of 0.

        No verdict where the two did not execute as many FLOPs.
        """
        if not same_cost(self.executed, self.executed_reference):
            counted = self.executed is not None and self.executed_reference is not None
            return f"no verdict: {'unequal FLOPs' if counted else 'FLOPs not counted'}"
        sign = -1 if self.metric == PERPLEXITY else 1
        if sign * self.difference_low > 0 and sign * self.difference_high > 0:
            return "better"
        if sign * self.difference_low < 0 and sign * self.difference_high < 0:
            return "worse"
        return "cannot be told"


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
    count = len(ours)
    generator = np.random.default_rng(0)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
    means, drawn = (ours.mean(), theirs.mean()), (weights @ ours, weights @ theirs)
    difference = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    kept: float | None
    bounds: tuple[float | None, float | None]
    if metric == PERPLEXITY:
        shown = float(np.exp(means[0])), float(np.exp(means[1]))
        kept, spread = shown[1] / shown[0], np.exp(drawn[1] - drawn[0])
        bounds = float(np.quantile(spread, 0.025)), float(np.quantile(spread, 0.975))
    else:
        shown = float(means[0]), float(means[1])
        kept, bounds = None, (None, None)
        if drawn[1].min() > 0:
            kept, spread = shown[0] / shown[1], drawn[0] / drawn[1]
            bounds = float(np.quantile(spread, 0.025)), float(np.quantile(spread, 0.975))
    return Change(
        task=task,
        metric=metric,
        model=model.label,
        against=reference.label,
        documents=count,
        value=shown[0],
        reference=shown[1],
        retained=kept,
        low=bounds[0],
        high=bounds[1],
        difference=float(means[0] - means[1]),
        difference_low=float(difference[0]),
        difference_high=float(difference[1]),
    )


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
        measures = list(self.base.values)
        columns = [Column(label="Model"), Column(label="Skipped", numeric=True)]
        for task, metric in measures:
            columns += [
                Column(label=f"{task} {metric}", numeric=True),
                Column(label="Retained", numeric=True),
            ]
        by = {(c.model, c.task, c.metric): c for c in self.kept}
        rows = []
        for scores in (self.base, *self.models):
            cells = [Cell(scores.label), Cell(percent(scores.skipped), scores.skipped)]
            for task, metric in measures:
                found = by.get((scores.label, task, metric))
                value = _score(scores.values[task, metric], metric)
                cells.append(Cell(_shown(value, metric), value))
                cells.append(
                    Cell(
                        MISSING if found is None else _kept(found), None if found is None else found.retained
                    )
                )
            rows.append(Row(cells=tuple(cells)))
        return Table(
            name="Table of retention",
            title="Scores, and what is retained of those of the base",
            columns=tuple(columns),
            rows=tuple(rows),
            notes=(
                "Retained: score / base's, of perplexity base's / score, with the 95% bootstrap interval over "
                "documents, drawn for both alike. Skipped: share of routed compute, measured on what was scored.",
            ),
        )

    @property
    def differences(self) -> Table:
        """The first model less each other one."""
        labels = ("Documents", "Δ", "95% interval", "FLOPs")
        rows = [
            Row(
                cells=(
                    Cell(f"{c.model} − {c.against}"),
                    Cell(f"{c.task} {c.metric}"),
                    Cell(str(c.documents), c.documents),
                    Cell(_delta(c.difference, c.metric), c.difference),
                    Cell(f"{_delta(c.difference_low, c.metric)} to {_delta(c.difference_high, c.metric)}"),
                    Cell(f"{percent(c.executed)}, {percent(c.executed_reference)}"),
                    Cell(c.better),
                )
            )
            for c in self.against_others
        ]
        return Table(
            name="Table of differences",
            title="The first model less each other one, on the same documents",
            columns=(
                Column(label="Comparison"),
                Column(label="Measure"),
                *(Column(label=label, numeric=True) for label in labels),
                Column(label="The first is"),
            ),
            rows=tuple(rows),
            notes=(
                "Points of accuracy; of perplexity nats of loss (negative is better). The interval is a bootstrap over "
                "documents and says nothing of other training runs; it is not corrected for the number of rows. FLOPs: "
                "executed on these documents by the first and by the other, of the base's. A verdict only "
                f"at equal cost: {SAME_COST_TEXT}; nothing is read off between models.",
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "base": self.base.label,
            "skipped": {scores.label: scores.skipped for scores in (self.base, *self.models)},
            "retained": [asdict(c) for c in self.kept],
            "differences": [{**asdict(c), "outcome": c.better} for c in self.against_others],
        }


def retention(base: Scores, models: Sequence[Scores]) -> Retention:
    """Hold every model against the base, and the first against the others.

    Raises:
        UserError: they were not scored on the same documents.
    """
    for scores in models:
        if list(scores.values) != list(base.values):
            raise UserError(f"{scores.label} and {base.label} were not scored on the same tasks")

    def held(scores: Scores, against: Scores, measure: tuple[str, str]) -> Change:
        ours, theirs = (_share(one, base, measure) for one in (scores, against))
        return replace(change(scores, against, *measure), executed=ours, executed_reference=theirs)

    kept = [held(scores, base, measure) for scores in models for measure in base.values]
    others = [held(models[0], rival, measure) for rival in models[1:] for measure in base.values]
    return Retention(base=base, models=tuple(models), kept=tuple(kept), against_others=tuple(others))


def _share(scores: Scores, base: Scores, measure: tuple[str, str]) -> float | None:
    done, whole = scores.executed.get(measure), base.executed.get(measure)
    return None if done is None or not whole else done / whole


def _score(values: Sequence[float], metric: str) -> float:
    mean = float(np.mean(values))
    return float(np.exp(mean)) if metric == PERPLEXITY else mean


def _shown(value: float, metric: str) -> str:
    return number(value, 2) if metric == PERPLEXITY else percent(value)


def _kept(found: Change) -> str:
    if found.retained is None:
        return MISSING
    return f"{percent(found.retained)} ({percent(found.low)} to {percent(found.high)})"


def _delta(value: float, metric: str) -> str:
    return signed(value, 3) if metric == PERPLEXITY else points(value)
