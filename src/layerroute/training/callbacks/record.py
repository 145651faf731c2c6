"""The record of a run while it is running."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RecordCallback(TrainerCallback):
    """Keeps the record on disk up to date after every evaluation, so that a killed run leaves what it reached.

    Args:
        update: merges sections into the record and writes it.
    """

    def __init__(self, update: Callable[[dict[str, Any]], None]) -> None:
        self.update = update

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not state.is_world_process_zero or metrics is None:
            return
        loss = metrics["eval_loss"]
        better = state.best_metric is None or loss < state.best_metric
        self.update(
            {
                "metrics": {
                    "validation_loss": loss,
                    "validation_perplexity": metrics["eval_perplexity"],
                    "validation_accuracy": metrics["eval_accuracy"],
                    "best_validation_loss": loss if better else state.best_metric,
                    "best_step": state.global_step if better else state.best_global_step,
                    "steps": state.global_step,
                }
            }
        )
