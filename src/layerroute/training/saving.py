"""Models on disk in the form that ``from_pretrained`` reads."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from layerroute.integrity import seal


def quiet_transformers() -> None:
    """Turn off transformers' own progress bars (one for each saved file), which would cross ours."""
    logging.disable_progress_bar()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to ``path``, replacing what is there in one move.

    They are written aside first, so that a write that fails leaves the old model as it was; what a process that was
    killed left half-way is first brought to an end, as ``recover_model`` does.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    replace_folder(path, write)


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder aside, then put it in the place of ``path`` in one move."""
    recover_model(path)
    aside, old = _aside(path)
    write(aside)
    seal(aside)
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    shutil.rmtree(old, ignore_errors=True)


def recover_model(path: Path) -> None:
    """Bring a replacement that a killed process began to its end, or undo it; afterwards only ``path`` is left."""
    aside, old = _aside(path)
    if not path.exists():
        # The old model is moved away only when the new one is whole.
        if old.exists() and aside.exists():
            os.replace(aside, path)
        elif old.exists():
            os.replace(old, path)
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _aside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.saving"), path.with_name(f".{path.name}.old")
