"""What the processes of a distributed run do together. All of it is a plain value where there is one process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

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


def check_engine(trainer: Trainer) -> None:
    """What accelerate was asked for and left out without a word, or can do but we cannot, is an error.

    Raises:
        UserError: FSDP on CPUs, or the first version of FSDP.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and not trainer.is_fsdp_enabled:
        raise UserError("FSDP was asked for (ACCELERATE_USE_FSDP), but needs several processes with GPUs")
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise UserError(
            "FSDP needs version 2 here; set FSDP_VERSION=2, or fsdp_version: 2 in accelerate's file"
        )


@contextmanager
def lost_processes(last_state: Callable[[], str]) -> Iterator[None]:
    """Turn what a process meets when another one is gone into one line.

    Args:
        last_state: says from where the run can go on.

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
