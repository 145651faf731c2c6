"""Progress of long work: one bar a stage with an ETA on a terminal, a plain line every 20 seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

Advance = Callable[[float | None], None]
"""Called with the share done, in [0, 1], or None where it is not known."""

Stage = Callable[[str], Advance]
"""Called with the title of a stage that begins; ends the stage before."""

EVERY = 20.0
"""Seconds between two lines where stderr is no terminal."""


@contextlib.contextmanager
def stages(enabled: bool, *, every: float | None = None) -> Iterator[Stage]:
    """Yield a :data:`Stage` that tells on stderr how far the work is, or does nothing if not ``enabled``.

    Args:
        every: seconds between plain lines. Default: :data:`EVERY`. Shorter work prints none.
    """
    if not enabled:
        yield lambda title: lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        with _plain_lines(EVERY if every is None else every) as plain:
            yield plain
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        running: list[tuple[str, int]] = []

        def stage(title: str) -> Advance:
            if running:
                progress.update(running[-1][1], total=1.0, completed=1.0)  # type: ignore[arg-type]
            task = progress.add_task(title, total=None)
            running.append((title, task))

            def advance(share: float | None) -> None:
                if share is not None:
                    progress.update(task, total=1.0, completed=min(1.0, share))

            return advance

        yield stage
        if running:
            progress.update(running[-1][1], total=1.0, completed=1.0)  # type: ignore[arg-type]


@contextlib.contextmanager
def _plain_lines(every: float) -> Iterator[Stage]:
    """A thread of its own prints: work that does not tell how far it is must not look dead."""
    title, share, since = "", None, time.monotonic()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(every):
            if title:
                print(_line(title, share, time.monotonic() - since), file=sys.stderr, flush=True)

    def stage(name: str) -> Advance:
        nonlocal title, share, since
        title, share, since = name, None, time.monotonic()

        def advance(reached: float | None) -> None:
            nonlocal share
            if title == name:
                share = reached

        return advance

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield stage
    finally:
        done.set()
        thread.join()


def _line(title: str, share: float | None, passed: float) -> str:
    if not share:
        return f"{title}: {_clock(passed)} so far"
    return f"{title}: {min(1.0, share):.0%}, {_clock(passed)} so far, about {_clock(passed / share - passed)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"
