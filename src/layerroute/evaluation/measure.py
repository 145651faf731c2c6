"""What a model scores on text of one or several kinds: loss, accuracy, routes, and compute really done."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerroute.data.copies import CopiesConfig
from layerroute.data.kinds import UNNAMED
from layerroute.data.progress import Stage, stages
from layerroute.evaluation.compute import count_executed, layers_run, skipped_share
from layerroute.evaluation.copies import copies_section
from layerroute.evaluation.loading import LoadedModel
from layerroute.evaluation.perplexity import evaluate, perplexity_of
from layerroute.evaluation.texts import Batch


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Scores by kind of text.

    Attributes:
        kinds: by kind, what ``layerroute evaluate --json`` tells of it.
        window_losses: by kind, the mean loss of each window in nats: the units of paired intervals.
    """

    kinds: dict[str, dict[str, Any]]
    window_losses: dict[str, list[float]] = field(repr=False)

    @property
    def mean(self) -> dict[str, float | None]:
        """Over kinds, each counted once however many tokens it has: loss, accuracy, mean_rate, skipped."""
        kinds = list(self.kinds.values())
        return {
            "loss": _over([one["loss"] for one in kinds]),
            "accuracy": _over([one["accuracy"] for one in kinds]),
            **{
                key: _over([None if one["routing"] is None else one["routing"][key] for one in kinds])
                for key in ("mean_rate", "skipped")
            },
        }

    @property
    def loss(self) -> float:
        """Cross-entropy in nats per predicted token, the mean over kinds."""
        return float(self.mean["loss"] or 0.0)

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return perplexity_of(self.loss)

    @property
    def accuracy(self) -> float:
        """Share of predicted tokens whose most likely prediction is right, the mean over kinds."""
        return float(self.mean["accuracy"] or 0.0)

    @property
    def skipped(self) -> float | None:
        """Share of routed compute that was skipped; None without a layer router that is on."""
        return self.mean["skipped"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one kind that has no name as it is, else the kinds and their mean."""
        if list(self.kinds) == [UNNAMED]:
            return self.kinds[UNNAMED]
        return {"kinds": self.kinds, "mean": self.mean}

    def _repr_html_(self) -> str:
        """For notebooks."""
        heads = ("kind", "tokens", "cross-entropy", "accuracy", "skipped")
        lines = [heads]
        for kind, one in self.kinds.items():
            skipped = None if one["routing"] is None else one["routing"]["skipped"]
            shown = "" if skipped is None else f"{skipped:.1%}"
            lines.append((kind, f"{one['tokens']:,}", f"{one['loss']:.4f}", f"{one['accuracy']:.1%}", shown))
        rows = (f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
        return f"<table>{''.join(rows)}</table>"


def _over(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def measure(
    loaded: LoadedModel,
    batches: Mapping[str, tuple[Sequence[Batch], str]],
    *,
    copies: CopiesConfig | None = None,
    progress: bool = True,
) -> Measured:
    """Score a model in inference mode.

    Args:
        batches: by kind, the windows to score, and where they come from.
        copies: also tell the loss on tokens that are copied from far back by this rule (``copies`` of each kind).
        progress: show bars on stderr.

    Raises:
        ValueError: if no token is predicted at all.
    """
    kinds, losses = {}, {}
    for kind, (found, source) in batches.items():
        with stages(progress) as stage:
            kinds[kind], losses[kind] = _one(
                loaded, found, source, "" if kind == UNNAMED else f" {kind}", stage
            )
            if copies is not None:
                kinds[kind]["copies"] = copies_section(
                    loaded.model, found, loaded.tokenizer, copies, precision=loaded.in_precision
                )
    return Measured(kinds=kinds, window_losses=losses)


def _one(
    loaded: LoadedModel, batches: Sequence[Batch], source: str, kind: str, stage: Stage
) -> tuple[dict[str, Any], list[float]]:
    """What is told of one kind of text, and the loss of each window."""
    total, done = sum(len(batch["input_ids"]) for batch in batches), 0
    advance = stage(f"scoring{kind}")

    def count(sequences: int) -> None:
        nonlocal done
        done += sequences
        advance(done / total)

    result = evaluate(loaded.model, batches, precision=loaded.in_precision, on_batch=count)
    routing = result.routing
    return {
        "data": source,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "accuracy": result.accuracy,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "by_position": result.by_position,
        "routing": None
        if routing is None
        else {
            "sites": routing.sites,
            "paths": routing.paths,
            "rate": routing.rate,
            "mean_rate": routing.mean_rate,
            "skipped": skipped_share(loaded.model, routing),
            "entropy": routing.entropy,
            "token_entropy": routing.token_entropy,
            "causal": routing.causal,
            "tokens": routing.tokens,
        },
        "layers": layers_run(loaded.model, routing),
        "flops": count_executed(loaded.model, batches, precision=loaded.in_precision),
    }, result.window_losses
