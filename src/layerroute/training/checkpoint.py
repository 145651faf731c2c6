"""Resumable checkpoints on disk: which there are, whether one is intact and belongs to a run. No torch here.

A checkpoint is written aside, sealed with a manifest (see ``layerroute.integrity``), and renamed.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from layerroute.errors import UserError
from layerroute.integrity import MANIFEST, DamagedError, inside, seal, sync, verify

STATE_NAME = "layerroute_state.json"
"""What this package adds to a Trainer checkpoint: fingerprint of the recipe, step, state of the meter."""

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"
SHARDS = "shards"
"""Holds weights and optimizer of a checkpoint that each process wrote its part of (see ``sharding``)."""

_FILES = ("scheduler.pt", "trainer_state.json", STATE_NAME)
_ROUTER = ("router.json", "router.safetensors")
_REMOVED = ".removed-"
STAGING = ".saving"
"""Where a checkpoint is written before it gets its name."""


def step_of(checkpoint: Path) -> int:
    """``checkpoint-40`` → 40; -1 for a folder of another name."""
    name, _, number = checkpoint.name.rpartition("-")
    return int(number) if name == "checkpoint" and number.isdecimal() else -1


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder`` that were written to their end, oldest first; they may be damaged by now."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path) >= 0 and (path / MANIFEST).exists()]
    return sorted(found, key=step_of)


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare every byte of a checkpoint with what was written.

    Raises:
        DamagedError: something differs, or is missing.
    """
    try:
        verify(checkpoint)
        if missing := missing_files(checkpoint):
            raise DamagedError(f"{missing[0]} is missing")
        for index in checkpoint.glob("*.index.json"):
            _check_index(checkpoint, index)
    except PermissionError as error:
        raise DamagedError(f"{Path(str(error.filename)).name} may not be read") from error


def _check_index(checkpoint: Path, index: Path) -> None:
    """The shards that an index names must lie beside it."""
    try:
        for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values():
            inside(checkpoint, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{index.name} is not an index of shards within its folder") from error


def publish(written: Path, folder: Path, *, state: dict[str, Any], keep: int) -> Path:
    """Give a checkpoint that lies complete in ``written`` its name in ``folder``, and drop older ones.

    Args:
        written: ``STAGING/checkpoint-N`` in ``folder``; it is moved, and ``STAGING`` removed.
        state: for ``STATE_NAME``.
        keep: how many of the checkpoints up to this one stay. Later ones (of a future that was given up) are left
            until the run reaches them again.
    """
    (written / STATE_NAME).write_text(json.dumps(state), encoding="utf-8")
    seal(written)
    target = folder / written.name
    _remove(target)
    os.replace(written, target)
    sync(folder)
    until = [path for path in checkpoints(folder) if step_of(path) <= step_of(target)]
    for old in until[:-keep]:
        _remove(old)
    written.parent.rmdir()
    return target


def clear_leftovers(folder: Path) -> None:
    """Remove what a process left that was killed while it saved. Nobody else may be writing in ``folder``."""
    for left in (*folder.glob(f"{_REMOVED}*"), folder / STAGING):
        shutil.rmtree(left, ignore_errors=True)


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint so that it is not a checkpoint any more, for whoever wants to look at it."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that at no moment half of it bears its name."""
    if checkpoint.exists():
        removed = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")
        shutil.rmtree(removed, ignore_errors=True)
        os.replace(checkpoint, removed)
        shutil.rmtree(removed)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, None if there is none."""
    found = checkpoints(folder)
    return found[-1] if found else None


def missing_files(checkpoint: Path) -> list[str]:
    """Names of files without which a run cannot go on from ``checkpoint``."""
    # Layer skipping keeps a router folder, attention routing a whole model.
    own = _ROUTER if (checkpoint / _ROUTER[0]).is_file() else ("config.json",)
    missing = [name for name in (*own, *_FILES) if not (checkpoint / name).is_file()]
    if not (checkpoint / SHARDS / ".metadata").is_file():
        if not (checkpoint / OPTIMIZER).is_file():
            missing.insert(0, OPTIMIZER)
        weights = (WEIGHTS, f"{WEIGHTS}.index.json")
        if own is not _ROUTER and not any((checkpoint / name).is_file() for name in weights):
            missing.append(WEIGHTS)
    if not any(checkpoint.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    return missing


def check_resumable(checkpoint: Path, fingerprint: str) -> dict[str, Any]:
    """The state stored in ``checkpoint``, after checking that it is intact and of the same recipe.

    Raises:
        UserError: if it is not a checkpoint, not complete, damaged, or of another recipe.
    """
    if not checkpoint.is_dir():
        raise UserError(f"--resume: there is no checkpoint folder {checkpoint}")
    missing = missing_files(checkpoint)
    if missing:
        raise UserError(
            f"--resume: {checkpoint} is not a resumable checkpoint: it has no {', '.join(missing)}; "
            "give a folder checkpoints/checkpoint-N of a run"
        )
    try:
        verify_checkpoint(checkpoint)
    except DamagedError as damage:
        raise UserError(f"--resume: {checkpoint} is damaged ({damage}); choose another checkpoint") from None
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        stored, _ = state["fingerprint"], int(state["step"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--resume: {checkpoint / STATE_NAME} is damaged; choose another checkpoint"
        ) from None
    if stored != fingerprint:
        raise UserError(
            f"--resume: {checkpoint} was made by another recipe or seed; resume it with the recipe.yaml of its run"
        )
    return state
