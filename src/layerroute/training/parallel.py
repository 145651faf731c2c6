"""What the processes of a distributed run do together. All of it is a plain value where there is one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import Trainer

from layerroute.errors import UserError
from layerroute.training.errors import TrainingFailed

T = TypeVar("T")

# What gloo and NCCL say when the process at the other end is gone.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL",
    "Gloo",
    "gloo",
    "Broken pipe",
    "timed out",
)


def is_main() -> bool:
    """Whether this process writes: the first of a distributed run, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def running_together() -> bool:
    """Whether there are several processes, and they are connected."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def of_the_first(value: T) -> T:
    """The value that the first process has, on all of them."""
    if not running_together():
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def any_of(flag: int, device: torch.device | str) -> int:
    """The largest of the processes' numbers."""
    if not running_together():
        return flag
    largest = torch.tensor(flag, dtype=torch.int64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def described_processes(trainer: Trainer) -> dict[str, Any]:
    """How many processes train, and what connects them, for the record."""
    count = trainer.args.world_size
    engine = "fsdp" if trainer.is_fsdp_enabled else "ddp"
    return {"count": count, "engine": engine if count > 1 else None}


def refuse_deepspeed() -> None:
    """What DeepSpeed does would break promises that every run here keeps.

    Raises:
        UserError: accelerate was asked for it.
    """
    if _asked_for("DEEPSPEED"):
        raise UserError(
            "DeepSpeed was asked for (ACCELERATE_USE_DEEPSPEED), but under accelerate it takes the optimizer step "
            "inside the backward pass, where a loss that is NaN cannot stop it, and its checkpoints are pickles that "
            "run when they are loaded; take FSDP2, which spreads weights and optimizer in the same way"
        )


def _asked_for(engine: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() in ("true", "1", "yes", "y", "on")


def check_engine(trainer: Trainer) -> None:
    """What accelerate was asked for and left out without a word, or can do but we cannot, is an error.

    Raises:
        UserError: FSDP on CPUs, or the first version of FSDP.
    """
    if _asked_for("FSDP") and not trainer.is_fsdp_enabled:
        raise UserError("FSDP was asked for (ACCELERATE_USE_FSDP), but needs several processes with GPUs")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise UserError(
            "FSDP needs version 2 here; set FSDP_VERSION=2, or fsdp_version: 2 in accelerate's file"
        )


@contextmanager
def lost_processes(last_state: Callable[[], str]) -> Iterator[None]:
    """Turn what a process meets when another one is gone into one line.

    Raises:
        TrainingFailed: another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not running_together() or not any(mark in str(error) for mark in _LOST):
            raise
        raise TrainingFailed(
            f"another process of the run ended or cannot be reached ({str(error).strip().splitlines()[0][:200]}); "
            f"the run can go on from {last_state()}"
        ) from error
