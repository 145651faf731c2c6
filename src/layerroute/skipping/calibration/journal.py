"""What a long calibration has found so far, on disk, so that one that was cut off goes on where it was."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch

from layerroute.integrity import replacing

EVERY = 60.0
"""Seconds between two notes of an unfinished step."""

_logger = logging.getLogger(__name__)

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
        folder: where the notes lie, one file a step, made with the first. None: nothing is kept, and every step begins
            anew.
        states: also keep the states of unfinished steps, which are as large as all windows, and let `LayerStack` map
            its states into files there. Else a step that was cut off begins anew, and finished ones do not.
    """

    def __init__(self, folder: Path | None = None, *, states: bool = True) -> None:
        self.folder, self.states, self._steps, self._writable = folder, states, 0, True
        if folder is not None and states:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def begun(self) -> bool:
        """Whether an earlier calibration has left notes."""
        return self.folder is not None and any(self.folder.glob("step-*.pt"))

    @property
    def scratch(self) -> Path | None:
        """Folder for states; None where they are in memory."""
        return self.folder if self.states else None

    def step(self) -> "Step":
        """The next step."""
        self._steps += 1
        return Step(self, f"step-{self._steps}.pt")

    def write(self, name: str, value: Any) -> None:
        """Keep a value in a file. What cannot be written is told once: a calibration does not end for want of notes."""
        if self.folder is None or not self._writable:
            return
        try:
            # The same calibration may run twice at once, and one that ends takes the folder with it.
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / name) as aside:
                torch.save(value, aside)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by a RuntimeError
            self._writable = False
            reason = str(error).splitlines()[0]
            _logger.warning(
                "%s: no notes can be kept (%s); cut off, this calibration begins anew", self.folder, reason
            )

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

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.name, self._noted = journal, name, time.monotonic()

    def recall(self) -> Any:
        """What was noted last; None if nothing was, or what there is cannot be read."""
        if self.journal.folder is None or not (file := self.journal.folder / self.name).is_file():
            return None
        with torch.serialization.safe_globals(_KEPT):
            try:
                return torch.load(file, weights_only=True, mmap=True)
            # Cut off while it was written, damaged, or of classes that are not kept.
            except (RuntimeError, OSError, EOFError, ValueError, UnpicklingError):
                return None

    def note(self, value: Any, *, done: bool = False, states: bool = False) -> None:
        """Keep a value.

        Args:
            value: what is found so far.
            done: keep it now; else only if the last note is old enough.
            states: it holds the states of all windows, which not every journal keeps.
        """
        if (done or time.monotonic() - self._noted >= EVERY) and (self.journal.states or not states):
            self.journal.write(self.name, value)
            self._noted = time.monotonic()
