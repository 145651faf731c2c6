"""What a long calibration has found so far, on disk, so that one that was cut off goes on where it was."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

EVERY = 60.0
"""Seconds between two notes of an unfinished step."""

_KEPT: list[Any] = []

Kept = TypeVar("Kept", bound=type)
Value = TypeVar("Value")


def kept(cls: Kept) -> Kept:
    """Class decorator: a journal may hold its instances (nothing else is ever unpickled)."""
    _KEPT.append(cls)
    return cls


class Journal:
    """Steps in their order, which is the same whenever the same calibration runs.

    Args:
        folder: where the notes lie, one file a step. None: nothing is kept, and every step begins anew.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self._steps = folder, 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def step(self) -> "Step":
        """The next step."""
        self._steps += 1
        return Step(None if self.folder is None else self.folder / f"step-{self._steps}.pt")

    def discard(self) -> None:
        """Forget all of it."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def once(self, compute: Callable[[], Value]) -> Value:
        """What ``compute`` gives, as a step of its own."""
        step = self.step()
        found: Value | None = step.recall()
        if found is None:
            found = compute()
            step.note(found, done=True)
        return found


class Step:
    """One step's notes; the last one counts."""

    def __init__(self, file: Path | None) -> None:
        self.file, self._noted = file, time.monotonic()

    def recall(self) -> Any:
        """What was noted last; None if nothing was, or what there is cannot be read."""
        if self.file is None or not self.file.is_file():
            return None
        with torch.serialization.safe_globals(_KEPT):
            try:
                return torch.load(self.file, weights_only=True, mmap=True)
            except (RuntimeError, OSError, EOFError, ValueError):  # cut off while it was written, or damaged
                return None

    def note(self, value: Any, *, done: bool = False) -> None:
        """Keep a value; unless it is ``done``, only if the last note is old enough."""
        if self.file is None or not (done or time.monotonic() - self._noted >= EVERY):
            return
        # The same calibration may run twice at once: each writes aside, and one that ends takes the folder with it.
        written = self.file.with_suffix(f".{os.getpid()}.new")
        written.parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, written)
        os.replace(written, self.file)
        self._noted = time.monotonic()
