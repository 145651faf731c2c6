"""The training loop: transformers' Trainer with routed losses. Side effects are callbacks."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from layerroute.evaluation.perplexity import Evaluation, evaluate
from layerroute.folders import replace_folder
from layerroute.routing.budget import mean_over_ranks
from layerroute.training.checkpoint import SHARDS, STAGING, STATE_NAME, newest_checkpoint, publish
from layerroute.training.disk import only_tensors
from layerroute.training.errors import TrainingDiverged
from layerroute.training.meter import TrainingMeter
from layerroute.training.optimization import decay_parameter_names, learning_rate_factor, optimizer_groups
from layerroute.training.pace import Pace
from layerroute.training.parallel import is_main
from layerroute.training.routing_schedule import RoutingCallback
from layerroute.training.samples import Batch, RecallSamples, collate
from layerroute.training.trainee import Trainee


def check_trainer_state(checkpoint: Path) -> None:
    """Read a checkpoint's ``trainer_state.json`` as the Trainer will. Raises whatever that raises, or ValueError."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    own = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    if state.global_step != own["step"]:
        raise ValueError(
            f"{TRAINER_STATE_NAME} is of step {state.global_step}, {STATE_NAME} of {own['step']}"
        )


class RoutedTrainer(Trainer):
    """Trains a causal language model that may route its tokens.

    What it adds to the Trainer: the loss terms of ``layerroute.objectives``; parameter groups with rates of their own;
    a stop *before* the optimizer step where loss or gradient norm is not finite; evaluation by cross-entropy only on
    fixed batches; checkpoints that are written aside and renamed, with the state of meter and loss; a data order that
    depends on the step alone.

    Args:
        trainee: built; gives the model, its loss, schedules and groups, and how its weights are written.
        arguments: as ``training_arguments`` makes them; ``output_dir`` is the folder of the checkpoints.
        fingerprint: of the recipe; stored in the checkpoints.

    Attributes:
        meter: totals of the run, and what is measured for the next curve point.
    """

    model: PreTrainedModel

    def __init__(
        self,
        trainee: Trainee,
        *,
        arguments: TrainingArguments,
        windows: Dataset[Batch],
        validation: list[Batch],
        fingerprint: str = "",
    ) -> None:
        self.trainee, self.train_config = trainee, trainee.recipe.train
        self.loss, self.groups = trainee.loss(), trainee.groups()
        self.pace = Pace(self.train_config.wait_above)
        if isinstance(windows, RecallSamples):
            windows.pace = self.pace
        self.routing = RoutingCallback(trainee.model, trainee.recipe.objective, self.pace)
        self.validation, self.fingerprint = validation, fingerprint
        self.meter = TrainingMeter()
        self.evaluation: Evaluation | None = None
        self._begins: list[float] | None = None
        self._staging: Path | None = None
        self._step_started = 0.0
        self._step_loss = 0.0
        self._step_language_loss = 0.0
        self._step_tokens = 0
        super().__init__(
            trainee.model,
            arguments,
            data_collator=collate,
            train_dataset=windows,
            eval_dataset=windows,  # only says that there is one: `evaluate` reads `validation`
            processing_class=trainee.tokenizer,
            callbacks=[self.routing],
        )
        self.loss_is_scaled_for_ga = False  # `compute_loss` returns a mean over the micro-batch

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return decay_parameter_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over all trainable parameters, or over the groups given."""
        if self.groups is None or self.optimizer is not None:
            return super().create_optimizer(model)
        parts, self._begins = optimizer_groups(
            self.groups,
            self.get_decay_parameter_names(self.model),
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
        )
        cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = cls(parts, **options)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            warmup = max(1, round(self.train_config.warmup_share * num_training_steps))
            chosen = self.optimizer if optimizer is None else optimizer
            assert chosen is not None
            factors: list[Callable[[int], float]] = [
                partial(
                    learning_rate_factor,
                    warmup_steps=warmup,
                    total_steps=num_training_steps,
                    first_step=round(begin * num_training_steps),
                    shape=self.train_config.schedule,
                )
                for begin in self._begins or [0.0] * len(chosen.param_groups)
            ]
            self.lr_scheduler = LambdaLR(chosen, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm = super()._clip_grad_norm(model)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # The last moment before the optimizer step. A loss that is not finite on another process shows in the
        # norm here, because gradients are averaged before they are clipped.
        for quantity, value in (("training loss", self._step_loss), ("gradient norm", float(norm))):
            if not math.isfinite(value):
                raise TrainingDiverged(
                    quantity,
                    value,
                    step=self.state.global_step + 1,
                    checkpoint=newest_checkpoint(self.folder),
                )
        return norm

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[Any]:
        return self.trainee.in_precision()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        first = self._step_tokens == 0
        if first:
            self._step_started, self._step_loss, self._step_language_loss = time.perf_counter(), 0.0, 0.0
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_tokens += inputs["input_ids"].numel()
        self._step_loss += float(loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        terms, decision, output = self.loss(model, inputs, rate=self.routing.rate, done=self.routing.done)
        if decision is not None:
            self.routing.observe(decision)
        self.meter.add_batch(terms, decision)
        if self.pace.limit is not None:
            share = terms.parts["lm_loss"] / self.args.gradient_accumulation_steps
            self._step_language_loss += float(mean_over_ranks(share))
        return (terms.total, output) if return_outputs else terms.total

    def _maybe_log_save_evaluate(self, *arguments: Any, **keywords: Any) -> None:
        # The step is over here: what follows is evaluation and checkpoints, which are no part of its time.
        if self._step_tokens:
            seconds = time.perf_counter() - self._step_started
            self.meter.add_step(tokens=self._step_tokens * self.args.world_size, seconds=seconds)
            self._step_tokens = 0
            self.loss.step_ended()
            self.pace.step_ended(self._step_language_loss)
        super()._maybe_log_save_evaluate(*arguments, **keywords)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # A curve point: the Trainer's own mean restarts with the process, the meter's not.
        if "grad_norm" in logs:
            point = self.meter.take()
            point["learning_rate"] = logs["learning_rate"]
            point["gradient_norm"] = logs["grad_norm"]
            if self.pace.limit is not None:
                point["waited"] = self.pace.waited
            if self.routing.modules:
                point["temperature"] = self.routing.temperature
                point["rate_target"] = self.routing.rate
            logs = point
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Cross-entropy, perplexity, accuracy and routing on the fixed validation batches."""
        self.routing.lay_aside()
        self.trainee.before_evaluation()
        result = evaluate(self.model, self.validation, precision=self.autocast_smart_context_manager)
        self.evaluation = result
        metrics = {"loss": result.loss, "perplexity": result.perplexity, "accuracy": result.accuracy}
        if result.routing is not None:
            metrics |= {f"rate/{site}": value for site, value in result.routing.rate.items()}
            metrics |= {f"entropy/{site}": value for site, value in result.routing.entropy.items()}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.trainee.own_weights:
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:  # transformers calls it in every process
            return
        folder = Path(output_dir or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.trainee.write_weights(self.accelerator.unwrap_model(self.model), folder)

    def gather(self) -> None:
        """Under FSDP, give the trainee a whole copy of the spread model, on the first process.

        All processes must call it. Without FSDP every process has a whole model already.
        """
        if not self.is_fsdp_enabled:
            return
        from layerroute.training.sharding import full_weights

        state = full_weights(self.model)
        if is_main():
            self.trainee.rebuild(state)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """As ``gather``, with the spread model in its place again afterwards."""
        spread = self.trainee.model
        self.gather()
        try:
            yield
        finally:
            self.trainee.model = spread

    def save_whole(self, path: Path) -> None:
        """Let the first process write the model as users load it; all processes must call it."""
        with self.gathered():
            if is_main():
                replace_folder(path, self.trainee.write)

    def _load_spread(self, checkpoint: Path) -> None:
        from layerroute.training.sharding import load_weights, spread_weights

        if not self.trainee.own_weights or (checkpoint / SHARDS).is_dir():
            load_weights(self.model, checkpoint)
            return
        state: dict[str, Tensor] = {}
        with self.gathered():
            if is_main():
                self.trainee.read_weights(self.trainee.model, checkpoint)
                state = self.trainee.model.state_dict()
        spread_weights(self.model, state)

    @property
    def sharded(self) -> bool:
        """Whether each process writes its part of a checkpoint: FSDP without gathering."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return plugin is not None and "SHARDED" in str(plugin.state_dict_type)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint; all processes must call it."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        from layerroute.training.sharding import full_weights

        folder = Path(output_dir or self.folder)
        if self.sharded:
            if self.args.should_save:
                self.model.config.save_pretrained(folder)
        elif not self.trainee.own_weights:
            state = full_weights(self.model)
            if self.args.should_save:
                self._save(str(folder), state)
        else:
            with self.gathered():
                if self.args.should_save:
                    folder.mkdir(parents=True, exist_ok=True)
                    self.trainee.write_weights(self.trainee.model, folder)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from layerroute.training.sharding import save_optimizer

        assert self.optimizer is not None and self.lr_scheduler is not None
        save_optimizer(self.model, self.optimizer.optimizer, Path(output_dir), sharded=self.sharded)  # type: ignore[attr-defined]
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with only_tensors(resume_from_checkpoint):
            if self.is_fsdp_enabled:
                self._load_spread(Path(resume_from_checkpoint))
            elif not self.trainee.own_weights:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                whole = self.accelerator.unwrap_model(self.model)
                self.trainee.read_weights(whole, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, then rename it: a folder ``checkpoint-N`` is always whole."""
        folder = self.folder
        self._staging = folder / STAGING
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            staging, self._staging = self._staging, None
        self.accelerator.wait_for_everyone()
        meter = self.meter.state_dict()  # a sum over all processes
        if not self.args.should_save:
            return
        written = staging / f"checkpoint-{self.state.global_step}"
        # The Trainer pickles its arguments; nothing here reads them, and a checkpoint should hold no pickle.
        (written / "training_args.bin").unlink(missing_ok=True)
        state = {
            "fingerprint": self.fingerprint,
            "step": self.state.global_step,
            "meter": meter,
            "loss": self.loss.state_dict(),
            "routing": self.routing.state_dict(),
            "pace": self.pace.state_dict(),
        }
        publish(written, folder, state=state, keep=self.train_config.keep_checkpoints)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with only_tensors(str(checkpoint)):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with only_tensors(str(checkpoint)):
            if self.is_fsdp_enabled and checkpoint is not None:
                from layerroute.training.sharding import load_optimizer

                load_optimizer(self.model, self.optimizer.optimizer, Path(checkpoint))  # type: ignore[union-attr]
                schedule = torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True)
                self.lr_scheduler.load_state_dict(schedule)  # type: ignore[union-attr]
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None:
                state = json.loads((Path(checkpoint) / STATE_NAME).read_text(encoding="utf-8"))
                self.meter.load_state_dict(state["meter"], self.args.device, share=int(is_main()))
                self.loss.load_state_dict(state["loss"])
                if "routing" in state:  # older checkpoints have none
                    self.routing.load_state_dict(state["routing"])
                if "pace" in state:
                    self.pace.load_state_dict(state["pace"])
