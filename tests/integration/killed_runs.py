"""Kills runs at random moments and lets them go on; run as a program by ``test_crash.py``.

    python killed_runs.py RECIPE FOLDER KILLS SEED

Every run is a fork of this process, which has imported everything: a kill costs a second, not ten. Half of the kills
come after a random time, the other half before a random one of the file operations of the run, most of which are parts
of a save. Prints one JSON object a kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import layerroute.training.run  # noqa: F401  (so that no fork has to)
from layerroute.cli.main import main

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}


def watch_files(folder: Path, act: Callable[[], None]) -> None:
    """Call ``act`` before every file operation in ``folder`` that can change something."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in FILE_OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wxa+")):
            return
        if os.fspath(arguments[0]).startswith(str(folder)):
            act()

    sys.addaudithook(hook)


def fork(work: Callable[[], int], log: Path) -> int:
    """Start ``work`` in a fork of this process; its output goes to ``log``."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(recipe: str, folder: Path) -> Callable[[], int]:
    return lambda: main(["train", recipe, "--out", str(folder)])


def straight(recipe: str, folder: Path) -> tuple[float, int]:
    """Train without a kill; returns the seconds that it took and the number of file operations."""
    counted = folder.parent / "operations"

    def work() -> int:
        seen = [0]
        watch_files(folder, lambda: seen.__setitem__(0, seen[0] + 1))
        code = run(recipe, folder)()
        counted.write_text(str(seen[0]))
        return code

    started = time.monotonic()
    assert wait(fork(work, folder.parent / "straight.log")) == 0
    return time.monotonic() - started, int(counted.read_text())


def killed(recipe: str, folder: Path, log: Path, *, operation: int = 0, seconds: float = 0.0) -> bool:
    """Train until the kill; False if the run was faster than it."""

    def work() -> int:
        left = [operation]

        def count() -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if operation:
            watch_files(folder, count)
        return run(recipe, folder)()

    process = fork(work, log)
    if not operation:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return wait(process) == -signal.SIGKILL


def program(recipe: str, work: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    folder, draw = Path(work), random.Random(int(seed))
    duration, operations = straight(recipe, folder / "straight")
    for number in range(int(kills)):
        out, log = folder / f"killed-{number}", folder / f"killed-{number}.log"
        how: dict[str, Any] = {}
        if number % 2:
            how = {"operation": draw.randint(1, operations)}
            assert killed(recipe, out, log, **how)
        else:
            how = {"seconds": draw.uniform(0.0, duration)}
            while not killed(recipe, out, log, **how):
                how["seconds"] *= 0.7
                out = out.with_name(f"{out.name}-again")
        left = sorted(path.relative_to(out).as_posix() for path in out.rglob(".*")) if out.exists() else []
        started = (out / "record.json").exists()
        code = wait(fork(run(recipe, out), log))
        print(
            json.dumps({"run": out.name, **how, "left": left, "started": started, "code": code}), flush=True
        )


if __name__ == "__main__":
    program(*sys.argv[1:])
