"""``layerroute study``: starts workers, watches them, and ends with the report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live

from layerroute.studies.display import StudyLines, StudyTable
from layerroute.studies.session import Session
from layerroute.studies.worker import LOGS
from layerroute.training.signals import Interrupted

_POLL = 1.0
_MOST_EARLY_DEATHS = 3
"""Workers in a row that end without having begun a run, before the study gives up: something is wrong with all."""


class WorkersFailed(RuntimeError):
    """Workers die before they begin anything; the message names the log."""


def run_workers(
    session: Session,
    command: Sequence[str],
    *,
    workers: int,
    console: Console,
) -> int:
    """Run a study's runs in ``workers`` processes of their own until none is left.

    A worker that dies is replaced, and its run tried again from its newest checkpoint, as often as the study's
    ``retries`` allow.

    Args:
        command: starts one worker.

    Returns:
        0 when nothing is left to run, 130 or 143 after SIGINT or SIGTERM: workers have then saved checkpoints and
        given their runs back.

    Raises:
        WorkersFailed: workers cannot start.
    """
    table, lines = StudyTable(session), StudyLines(console)
    live: AbstractContextManager[Any] = nullcontext()
    if console.is_terminal:
        live = Live(table, console=console, refresh_per_second=2)
    children: dict[int, subprocess.Popen[bytes]] = {}
    early = 0
    with _Signals() as signals, live:
        try:
            while True:
                states = session.states()
                table.update(states)
                if not console.is_terminal:
                    lines.update(states)
                session.advance()
                left = not session.over()
                if signals.received is None and left:
                    for place in range(workers):
                        if place not in children:
                            children[place] = _start(session, command, place, workers)
                if not children:
                    return 0 if signals.received is None else 128 + signals.received
                signals.forward(children.values())
                time.sleep(_POLL)
                for place, child in list(children.items()):
                    if child.poll() is None:
                        continue
                    del children[place]
                    if child.returncode not in (0, 130, 143) and signals.received is None:
                        begun = sum(state.attempts for state in session.states().values())
                        early = 0 if begun != sum(state.attempts for state in states.values()) else early + 1
                        if early >= _MOST_EARLY_DEATHS and not any(
                            state.status == "running" for state in states.values()
                        ):
                            raise WorkersFailed(
                                f"workers end with exit code {child.returncode} before they begin a run; see "
                                f"{_log(session, place)}"
                            )
        finally:
            for child in children.values():
                child.terminate()
            for child in children.values():
                child.wait()


def serve(session: Session, work: Callable[[Session], int]) -> int:
    """What a worker process does: ``work`` until nothing is left; returns its exit code.

    It ends, with a checkpoint, when the process that started it is gone.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), name="parent watch", daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        work(session)
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def _stop(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _start(session: Session, command: Sequence[str], place: int, workers: int) -> subprocess.Popen[bytes]:
    log = _log(session, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(place, workers),
            # Ctrl-C goes to the foreground's processes, all at once: workers get it from here, once.
            start_new_session=True,
        )


def _log(session: Session, place: int) -> Path:
    return session.out / LOGS / f"worker{place}.log"


def _environment(place: int, workers: int) -> dict[str, str]:
    """Share out cores and GPUs among workers, unless the user has."""
    environment = dict(os.environ)
    if workers > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
        import torch

        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = devices.split(",") if devices else [str(n) for n in range(torch.cuda.device_count())]
        if len(names) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    return environment


class _Signals:
    """Notes SIGINT and SIGTERM, to be passed on to workers that lead sessions of their own."""

    received: int | None = None
    _pending = 0

    def __enter__(self) -> _Signals:
        self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._pending += 1

    def forward(self, children: Any) -> None:
        """Pass each signal on once."""
        while self._pending:
            self._pending -= 1
            assert self.received is not None
            print("layerroute: stopping; runs are saved first", file=sys.stderr)
            for child in children:
                child.send_signal(self.received)
