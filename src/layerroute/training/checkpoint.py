"""Resumable checkpoints on disk: which there are, and whether one belongs to a run. No torch here."""

import json
from pathlib import Path
from typing import Any

from layerroute.errors import UserError

STATE_NAME = "layerroute_state.json"
"""What this package adds to a Trainer checkpoint: fingerprint of the recipe, step, state of the meter."""

_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json", STATE_NAME)
_ROUTER = ("router.json", "router.safetensors")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def step_of(checkpoint: Path) -> int:
    """``checkpoint-40`` → 40; -1 for a folder of another name."""
    name, _, number = checkpoint.name.rpartition("-")
    return int(number) if name == "checkpoint" and number.isdecimal() else -1


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        path for path in folder.iterdir() if path.is_dir() and step_of(path) >= 0 and not missing_files(path)
    ]
    return sorted(found, key=step_of)


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, None if there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def missing_files(checkpoint: Path) -> list[str]:
    """Names of files without which a run cannot go on from ``checkpoint``."""
    # Layer skipping keeps a router folder, attention routing a whole model.
    own = _ROUTER if (checkpoint / _ROUTER[0]).is_file() else ("config.json",)
    missing = [name for name in (*own, *_FILES) if not (checkpoint / name).is_file()]
    if own is not _ROUTER and not any((checkpoint / name).is_file() for name in _WEIGHTS):
        missing.append(_WEIGHTS[0])
    if not any(checkpoint.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    return missing


def check_resumable(checkpoint: Path, fingerprint: str) -> dict[str, Any]:
    """The state stored in ``checkpoint``, after checking that it is complete and of the same recipe.

    Raises:
        UserError: if it is no checkpoint, not complete, or of another recipe.
    """
    if not checkpoint.is_dir():
        raise UserError(f"--resume: there is no checkpoint folder {checkpoint}")
    missing = missing_files(checkpoint)
    if missing:
        raise UserError(
            f"--resume: {checkpoint} is no resumable checkpoint: it has no {', '.join(missing)}; "
            "give a folder checkpoints/checkpoint-N of a run"
        )
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        stored = state["fingerprint"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--resume: {checkpoint / STATE_NAME} is damaged; choose another checkpoint"
        ) from None
    if stored != fingerprint:
        raise UserError(
            f"--resume: {checkpoint} was made by another recipe or seed; resume it with the recipe.yaml of its run"
        )
    return state
