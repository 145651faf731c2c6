"""A recipe's `train` section in the words of transformers' Trainer."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from layerroute.errors import UserError, nearest, require
from layerroute.training.configuration import TrainConfig

PROJECT = "layerroute"
"""In trackers, unless they are told otherwise."""

# The older of the versions that we run with knows the former name alone.
_CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
_NEVER = 10**9  # steps: the Trainer still evaluates and saves at the last one


def training_arguments(
    config: TrainConfig, *, folder: Path, device: torch.device, seed: int, name: str | None = None
) -> TrainingArguments:
    """The Trainer's arguments; ``folder`` takes the checkpoints, ``name`` is the run's in trackers.

    Precision is not among them: ``RoutedTrainer`` makes its own autocast context, the same in training and evaluation.

    Raises:
        UserError: if the batch cannot be divided among processes and accumulation steps, or a tracker is unknown or
            not installed.
    """
    parts = check_arguments(config)
    if "wandb" in config.report_to:
        os.environ.setdefault("WANDB_PROJECT", PROJECT)  # transformers' callback takes it from there only
    renamed: dict[str, Any] = {_CHECKPOINTING: config.gradient_checkpointing}
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size // parts,
        gradient_accumulation_steps=config.gradient_accumulation,
        **renamed,
        optim="adamw_torch_fused",
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_epsilon=config.adam_epsilon,
        max_grad_norm=config.max_gradient_norm,
        logging_steps=config.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=config.evaluate_every or _NEVER,
        save_steps=config.save_every or _NEVER,
        save_total_limit=None,  # `RoutedTrainer` keeps the newest, after its renaming
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        train_sampling_strategy="sequential",  # `TrainingWindows` holds the order
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        log_level="error",
        run_name=name,
        project=PROJECT,
        report_to=[name for name in config.report_to if name != "tensorboard"],
    )


def check_arguments(config: TrainConfig) -> int:
    """Hold a `train` section against this machine. Returns the parts that a batch is divided into.

    Raises:
        UserError: as ``training_arguments``.
    """
    _check_trackers(config.report_to)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    parts = processes * config.gradient_accumulation
    if config.batch_size % parts:
        raise UserError(
            f"train.batch_size ({config.batch_size}) must be a multiple of processes × train.gradient_accumulation "
            f"({processes} × {config.gradient_accumulation})"
        )
    return parts


def _check_trackers(names: list[str]) -> None:
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(
                f"train.report_to: {name!r} is not a tracker.{nearest(name, INTEGRATION_TO_CALLBACK)}"
            )
        if name == "tensorboard":
            require(name, extra="track")
        if name not in get_available_reporting_integrations():
            raise UserError(f"train.report_to: {name!r} is not installed here; install it, or leave it out")
