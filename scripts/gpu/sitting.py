"""One phase of a GPU sitting: its steps one after the other, within a limit, with records as they come.

``run.sh`` calls it. A step is a command in a process of its own, so that one that breaks the device ends alone. What a
phase did is in ``DIR/PHASE/steps.json``, what its commands said in ``log.txt``, their records beside them; all of it is
whole at any moment. Started again, a phase goes on after the steps that this revision has done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from layerroute.errors import UserError
from layerroute.integrity import replace_text
from layerroute.provenance import provenance
from layerroute.records import utc_now
from scripts.gpu.phases import PHASES, Place, Step

GRACE = 12.0
"""Seconds before the limit at which a step is told to stop: a training run saves a checkpoint in them."""
_ARCHIVE_EVERY = 10.0
_KEPT = (".json", ".jsonl", ".txt", ".csv", ".yaml")
_LARGEST = 8 << 20
_LEFT_OUT = {"checkpoints", "best", "last", "cache", "models", "tensorboard"}


STEPS = "steps.json"
clock = time.monotonic


class CutOff(Exception):
    """The phase was told to stop."""


class Phase:
    """The steps of a phase, and what became of them.

    Args:
        place: where it works.
        archive: file that always holds all records of the sitting; None for none.
    """

    def __init__(self, name: str, place: Place, archive: Path | None) -> None:
        self.name, self.place, self.archive = name, place, archive
        self.folder = place.out / name
        self.folder.mkdir(parents=True, exist_ok=True)
        source = provenance()
        self.code = {"revision": source["revision"], "dirty": source["dirty"], "rehearsal": place.rehearse}
        self.state: dict[str, Any] = {**self.code, "phase": name, "steps": {}}
        earlier = self._earlier()
        if all(earlier.get(key) == value for key, value in self.code.items()):
            self.state["steps"] = earlier["steps"]
        self._archived = 0.0

    @property
    def _file(self) -> Path:
        return self.folder / STEPS

    def _earlier(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def run(self, steps: Sequence[Step], seconds: float) -> int:
        """Run the steps that are not done; returns 0 if all are done now, 1 if one failed, 143 if time ran out."""
        deadline = clock() + seconds - min(GRACE, seconds / 4)
        for step in steps:
            if self._status(step.name) == "done":
                self._say(f"{step.name}: done before")
                continue
            if clock() >= deadline:
                self._note(step.name, status=self._status(step.name) or "not begun")
                continue
            self._take(step, deadline)
        statuses = {self._status(step.name) for step in steps}
        return 0 if statuses == {"done"} else 1 if "failed" in statuses else 143

    def _status(self, name: str) -> str | None:
        status: str | None = self.state["steps"].get(name, {}).get("status")
        return status

    def _take(self, step: Step, deadline: float) -> None:
        start = clock()
        self._note(step.name, status="running", started=utc_now(), command=step.shown)
        try:
            code = self._supervise(step, deadline)
        except CutOff:
            self._note(step.name, status="cut off", seconds=round(clock() - start, 1))
            raise
        status = "done" if code == 0 else "cut off" if code is None or code in (130, 143) else "failed"
        self._note(step.name, status=status, exit_code=code, seconds=round(clock() - start, 1))

    def _supervise(self, step: Step, deadline: float) -> int | None:
        """The exit code of a step; None if it had to be stopped."""
        with (self.folder / "log.txt").open("ab") as log:
            log.write(f"\n=== {utc_now()} {step.shown}\n".encode())
            log.flush()
            output = (self.folder / step.stdout).open("wb") if step.stdout else log
            process = subprocess.Popen(
                step.command,
                stdout=output,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | step.environment,
            )
            try:
                while clock() < deadline:
                    try:
                        return process.wait(timeout=min(1.0, max(0.01, deadline - clock())))
                    except subprocess.TimeoutExpired:
                        self._archive(every=_ARCHIVE_EVERY)
                return None
            finally:
                _stop(process)
                if output is not log:
                    output.close()

    def _note(self, name: str, **facts: Any) -> None:
        kept = self.state["steps"].get(name, {}) if facts.get("status") != "running" else {}
        self.state["steps"][name] = kept | facts
        replace_text(self._file, json.dumps(self.state, indent=2) + "\n")
        self._archive()
        seconds = f", {facts['seconds']} s" if "seconds" in facts else ""
        self._say(f"{name}: {facts['status']}{seconds}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", flush=True)

    def _archive(self, every: float = 0.0) -> None:
        if self.archive is not None and clock() - self._archived >= every:
            write_archive(self.place.out, self.archive)
            self._archived = clock()


def write_archive(folder: Path, archive: Path) -> None:
    """Pack the records and logs of a folder into one file, whole or not at all; models and checkpoints stay."""
    aside = archive.with_name(f".{archive.name}.tmp")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(aside, "w:gz") as tar:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if path.suffix not in _KEPT or _LEFT_OUT & set(inner.parts) or inner.name.startswith("."):
                continue
            if path.is_file() and path.stat().st_size <= _LARGEST:
                tar.add(path, arcname=str(inner))
    os.replace(aside, archive)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process: asked first, so that it can save."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=GRACE * 0.75)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cut_off(number: int, _: FrameType | None) -> None:
    raise CutOff(signal.Signals(number).name)


def _describe(place: Place, run: Callable[..., Any] = subprocess.run) -> None:
    """``machine.json``: what this machine and its software are."""
    found = run(
        [sys.executable, "-m", "layerroute", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    try:
        machine = json.loads(found.stdout)
    except ValueError:
        raise UserError(f"layerroute doctor does not run here: {found.stderr.strip()[-300:]}") from None
    place.out.mkdir(parents=True, exist_ok=True)
    replace_text(place.out / "machine.json", json.dumps(machine, indent=2) + "\n")
    if machine["hardware"]["accelerator"] is None and not place.rehearse:
        raise UserError("torch finds no GPU here; --rehearse runs the phases on a CPU")


def main() -> int:
    """Run one phase; returns its exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=tuple(PHASES))
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    arguments = parser.parse_args()
    started = clock()
    # As given: records hold the commands, and folders of this machine have no place in them.
    place = Place(out=arguments.out, pack=arguments.pack, rehearse=arguments.rehearse)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _cut_off)
    try:
        if not (place.out / "machine.json").exists():
            _describe(place)
        phase = Phase(arguments.phase, place, arguments.archive)
        return phase.run(PHASES[arguments.phase](place), arguments.seconds - (clock() - started))
    except CutOff:
        return 143
    except UserError as error:
        print(f"run.sh: {arguments.phase}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
