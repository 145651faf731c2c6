"""Trains on a disk that fails in the middle; run by ``test_crash.py`` in a mount namespace of its own.

    unshare --user --map-root-user --mount python failing_disks.py RECIPE FOLDER

FOLDER/straight is the same run without trouble. Prints one JSON object a case.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerroute.cli.main import main
from layerroute.training import trainer as trainer_module
from tests.integration.test_train import assert_same_run

LARGE, BREAK_AT = "64m", 12
# Bytes that are left: for nothing, for a few files of a checkpoint, for nearly all of them.
LEFT = {"full at once": 0, "full": 150_000, "nearly full": 330_000}


def mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


def train(recipe: str, out: Path) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(["train", recipe, "--out", str(out)])
    return code, output.getvalue(), errors.getvalue()


@contextlib.contextmanager
def at_step(step: int, act: Callable[[], None]) -> Any:
    """Call ``act`` in the middle of a step."""
    original = trainer_module.RoutedTrainer.training_step
    done: list[int] = []

    def training_step(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if self.state.global_step == step - 1 and not done:
            done.append(step)
            act()
        return original(self, *arguments, **keywords)

    trainer_module.RoutedTrainer.training_step = training_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer_module.RoutedTrainer.training_step = original  # type: ignore[method-assign]


def last_checkpoint(out: Path) -> int:
    return max(int(path.name.rpartition("-")[2]) for path in (out / "checkpoints").glob("checkpoint-*"))


def case(name: str, recipe: str, work: Path) -> dict[str, Any]:
    disk = work / name
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={LARGE}", "none", str(disk))
    out = disk / "run"
    hidden = work / f"{name}-hidden"

    def fail() -> None:
        match name:
            case "full" | "full at once" | "nearly full":  # what is free does not hold another checkpoint
                free = shutil.disk_usage(disk).free
                (disk / "ballast").write_bytes(b"x" * (free - LEFT[name]))
            case "read-only":
                mount("--bind", str(out / "checkpoints"), str(out / "checkpoints"))
                mount("-o", "remount,bind,ro", str(out / "checkpoints"))
            case "vanished":  # as a network disk does: what lies below is another, empty folder
                hidden.mkdir()
                mount("--bind", str(disk), str(hidden))
                subprocess.run(["umount", "--lazy", str(disk)], check=True)

    with at_step(BREAK_AT, fail):
        code, _, errors = train(recipe, out)
    made = sorted(path.name for path in disk.iterdir()) if name == "vanished" else []
    match name:
        case "full" | "full at once" | "nearly full":
            (disk / "ballast").unlink()
        case "read-only":
            subprocess.run(["umount", str(out / "checkpoints")], check=True)
        case "vanished":
            mount("--bind", str(hidden), str(disk))
    last = last_checkpoint(out)
    resumed, output, more = train(recipe, out)
    told = [line for line in output.splitlines() if line.startswith("Going on from")]
    assert_same_run(work / "straight", out)
    return {
        "case": name,
        "code": code,
        "errors": errors,
        "made": made,
        "last": last,
        "resumed": resumed,
        "going_on_from": int(told[0].rpartition("-")[2]) if told else None,
        "same": True,
        "more": more,
    }


if __name__ == "__main__":
    for chosen in (*LEFT, "read-only", "vanished"):
        print(json.dumps(case(chosen, sys.argv[1], Path(sys.argv[2]))), flush=True)
