"""The result record of a training run, from its first second to its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerroute.evaluation.perplexity import Evaluation
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.hybrid import HybridConfig
from layerroute.provenance import provenance
from layerroute.records import KILLED, utc_now, write_record
from layerroute.training.models import ModelFigures


class RunRecord:
    """A record that is written anew, whole, whenever something is added.

    Args:
        path: the run's directory.
        recipe: the resolved recipe.
        command: the command line that started the run.
        earlier: the record of the part of the run before it was interrupted, if there is one: its start counts.
        note: what there is to say about where it goes on.
        step: of the checkpoint from which it goes on, None if there is none.
    """

    def __init__(
        self,
        path: Path,
        recipe: Mapping[str, Any],
        *,
        command: str,
        earlier: Mapping[str, Any] | None = None,
        note: str = "",
        step: int | None = None,
    ) -> None:
        self.path = path
        resumptions = list((earlier or {}).get("resumptions") or [])
        if earlier is not None:
            # A process that was killed could not say so itself.
            killed = earlier["status"] == "running"
            resumptions.append(
                {
                    "at": utc_now(),
                    "step": step,
                    "status_before": "interrupted" if killed else earlier["status"],
                    "error_before": earlier.get("error") or (KILLED if killed else None),
                    "note": note or None,
                }
            )
        self.content: dict[str, Any] = {
            "schema": 1,
            "run": f"{recipe['name']}-seed{recipe['seed']}",
            "arm": recipe["name"],
            "capability": recipe["capability"],
            "seed": recipe["seed"],
            "status": "running",
            "error": None,
            "command": command,
            "started": (earlier or {}).get("started") or utc_now(),
            "finished": None,
            "recipe": dict(recipe),
            "curves": "curves.jsonl",
            "token_routes": None,
            "routing": None,
            **provenance(),
        }
        if resumptions:
            self.content["resumptions"] = resumptions

    def update(self, sections: Mapping[str, Any]) -> None:
        """Merge sections (one level deep) into the record and write it."""
        for name, value in sections.items():
            here = self.content.get(name)
            merge = isinstance(value, Mapping) and isinstance(here, Mapping)
            self.content[name] = {**here, **value} if merge else value  # type: ignore[dict-item]
        write_record(self.path, self.content)

    def finish(self, status: str, error: str | None = None) -> None:
        """Write how the run ended."""
        self.update({"status": status, "error": error, "finished": utc_now()})


def static_sections(figures: ModelFigures, data: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a run before its first step."""
    keys = ("source", "fingerprint", "tokenizer", "vocabulary_size", "train_tokens", "validation_tokens")
    return {
        "parameters": {"total": figures.total, "trainable": figures.trainable, "by_part": figures.parameters},
        "flops": flops_section(figures, rate=None, executed=None),
        "data": {**data, **{key: data[key] for key in keys}},
    }


def flops_section(figures: ModelFigures, *, rate: float | None, executed: float | None) -> dict[str, Any]:
    """FLOPs per token: all that masked execution computes, what the measured rate needs, what was executed."""
    flops = figures.flops
    section: dict[str, Any] = {
        "forward_per_token": flops.forward_per_token,
        "by_part": flops.by_part,
        "by_path": flops.by_path,
        "executed_per_token": executed,
        "context_length": flops.context_length,
    }
    if not flops.routed_layers:
        section["routed_per_token"] = flops.forward_per_token
    elif rate is not None:
        section["routed_per_token"] = flops.at_rate(rate)
    return section


def metrics_section(evaluation: Evaluation) -> dict[str, float]:
    """Validation metrics of the last model."""
    return {
        "validation_loss": evaluation.loss,
        "validation_perplexity": evaluation.perplexity,
        "validation_accuracy": evaluation.accuracy,
    }


def routing_section(statistics: RoutingStatistics, config: HybridConfig) -> dict[str, Any]:
    """Where tokens went at the last evaluation, and how it was decided."""
    routing = config.routing_config
    return {
        **statistics.record(),
        "router": config.router_mode,
        "control": routing.control,
        "context": config.context,
        "estimator": None if routing.control else routing.estimator,
    }
