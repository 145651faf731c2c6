"""What is wrong with a disk or a checkpoint, told in one line whatever library found out."""

import errno
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from layerroute.errors import UserError
from layerroute.training.errors import TrainingFailed
from layerroute.training.run_directory import RunDirectory

# torch.save and safetensors do not raise OSError where a write fails.
_OF_TORCH = ("PytorchStreamWriter", "inline_container", "iostream error")
_OF_SAFETENSORS = ("I/O error", "os error")
_FULL_BYTES = 1 << 20


@contextmanager
def disk_errors(directory: RunDirectory, last_state: Callable[[], str]) -> Iterator[None]:
    """Turn what writing to the folder of a run can raise into ``TrainingFailed``."""
    before = threading.excepthook
    threading.excepthook = partial(_told_elsewhere, before)
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError):
            where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else directory.path
            what = f"{where}: {error.strerror or error}"
            try:
                directory.check_there()
            except OSError as gone:
                what = f"{directory.path}: {gone.strerror}"
        else:
            marks = _OF_SAFETENSORS if isinstance(error, SafetensorError) else _OF_TORCH
            if not any(mark in str(error) for mark in marks):
                raise
            what = f"{directory.path}: {state_of(directory.path) or str(error).splitlines()[0]}"
        raise TrainingFailed(f"cannot write to {what}; the run can go on from {last_state()}") from error
    finally:
        threading.excepthook = before


def _told_elsewhere(before: Callable[[Any], Any], arguments: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread meets the same disk as we do; its traceback would say nothing more."""
    if not isinstance(arguments.exc_value, OSError):
        before(arguments)


@contextmanager
def only_tensors(checkpoint: str) -> Iterator[None]:
    """Say in one line that a checkpoint holds something else than what a Trainer saves.

    Its files are read with ``weights_only=True``: what a pickle would do beyond making tensors is refused.

    Raises:
        UserError: for whatever reading it raises.
    """
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's own words end in the advice to run it
        raise UserError(
            f"--resume: the checkpoint {checkpoint} cannot be used: it holds more than tensors and plain values, or is "
            "no file of torch's; none of it was run"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--resume: the checkpoint {checkpoint} cannot be used: {type(error).__name__}: {reason}"
        ) from error


def state_of(path: Path) -> str | None:
    """What keeps us from writing into the folder ``path``, None if nothing is to be seen."""
    try:
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
        if shutil.disk_usage(path).free < _FULL_BYTES:
            return os.strerror(errno.ENOSPC)
    except OSError as error:
        return error.strerror
    return None if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
