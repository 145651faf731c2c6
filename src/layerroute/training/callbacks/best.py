"""The model with the lowest validation loss so far."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class BestModelCallback(TrainerCallback):
    """Saves the model whenever an evaluation is the best so far.

    The best loss is part of the Trainer's state, hence of its checkpoints: a resumed run compares with what was
    reached up to its checkpoint, not with what a lost future reached.

    Args:
        path: folder of the best model.
        save: writes a model to a folder, whole or not at all.
    """

    def __init__(self, path: Path, save: Callable[[Path], None]) -> None:
        self.path, self.save = path, save

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        # The Trainer moves `best_metric` only after this call.
        if metrics is not None and (state.best_metric is None or metrics["eval_loss"] < state.best_metric):
            self.save(self.path)
