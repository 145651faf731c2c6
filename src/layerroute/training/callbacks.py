"""What a run does beside its training: signs of life, the best model, the record, a checkpoint when a signal comes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerroute.liveness import Heartbeat
from layerroute.training.parallel import any_of, running_together
from layerroute.training.run_directory import RunDirectory
from layerroute.training.signals import Interruption


class RunCallback(TrainerCallback):
    """Keeps the folder of a run up to date.

    Every process: noise of its own (one seed for all would repeat it on each part of a distributed batch; a resumed
    run takes up its random numbers after this), a curve point at the last step even where ``log_every`` does not
    divide it, a checkpoint and the end after the step in which a signal came, the best model.

    The process that writes: touches the run's lock file, looks whether the folder is still there before anything is
    written, and keeps the record up to date, so that a killed run leaves what it reached.

    Args:
        save_best: writes the model to the folder of the best one, whole or not at all; all processes call it.
        update: merges sections into the record; None on processes that do not write.
    """

    def __init__(
        self,
        directory: RunDirectory,
        interruption: Interruption,
        *,
        seed: int,
        save_best: Callable[[Path], None],
        update: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.directory, self.interruption, self.seed = directory, interruption, seed
        self.save_best, self.update = save_best, update
        self.heartbeat = None if update is None else Heartbeat(directory.path)

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: object) -> None:
        self.interruption.deferred = True
        if args.world_size > 1:
            torch.manual_seed(self.seed * 1_000_003 + args.process_index)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
        # A signal may reach one process of a distributed run before the others: they stop at the same step.
        number = any_of(self.interruption.signal_number or 0, args.device if running_together() else "cpu")
        if number:
            self.interruption.signal_number = number
            control.should_save = True
            control.should_training_stop = True
        if self.heartbeat is not None:
            self.heartbeat.beat()
            if control.should_evaluate or control.should_save:
                self.directory.check_there()
        return control

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if metrics is None:
            return
        # The Trainer moves `best_metric` only after this call. It is part of its checkpoints: a resumed run compares
        # with what was reached up to its checkpoint, not with what a lost future reached.
        loss, best, step = metrics["eval_loss"], state.best_metric, state.global_step
        better = best is None or loss < best
        if better:
            self.save_best(self.directory.best)
        if self.update is not None:
            reached = {
                "validation_loss": loss,
                "validation_perplexity": metrics["eval_perplexity"],
                "validation_accuracy": metrics["eval_accuracy"],
                "best_validation_loss": loss if better else best,
                "best_step": step if better else state.best_global_step,
                "steps": step,
            }
            self.update({"metrics": reached})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        self.interruption.deferred = False
