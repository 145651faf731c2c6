"""Progress of long work: one bar a stage with an ETA on a terminal or in a notebook, else a line every 20 seconds."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator

Advance = Callable[[float | None], None]
"""Called with the share done, in [0, 1], or None where it is not known."""

Stage = Callable[[str], Advance]
"""Called with the title of a stage that begins; ends the stage before."""

EVERY = 20.0
"""Seconds between two lines where stderr is no terminal. Shorter work prints none."""
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@contextlib.contextmanager
def stages(enabled: bool) -> Iterator[Stage]:
    """Yield a :data:`Stage` that tells on stderr how far the work is, or does nothing if not ``enabled``."""
    if not enabled:
        yield lambda title: lambda share: None
        return
    from tqdm.auto import tqdm

    if not (sys.stderr.isatty() or _in_notebook()):
        with _plain_lines() as plain:
            yield plain
        return
    bars: list[tqdm] = []

    def end() -> None:
        if bars:
            bars[-1].update(1.0 - bars[-1].n)
            bars[-1].close()

    def stage(title: str) -> Advance:
        end()
        # A terminal without a window says that it has no lines and columns, and tqdm would draw none.
        columns, lines = (None, None) if _in_notebook() else shutil.get_terminal_size()
        bar = tqdm(total=1.0, desc=title, bar_format=_BAR, ncols=columns, nrows=lines)
        bars.append(bar)

        def advance(share: float | None) -> None:
            if share is not None:
                bar.update(min(1.0, share) - bar.n)

        return advance

    try:
        yield stage
    except BaseException:
        if bars:
            bars[-1].close()  # as far as it came
        raise
    end()


def _in_notebook() -> bool:
    """Whether bars are drawn by a notebook's kernel, whose stderr is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def _plain_lines() -> Iterator[Stage]:
    """A thread of its own prints: work that does not tell how far it is must not look dead."""
    title, share, since = "", None, time.monotonic()
    done = threading.Event()

    def tell() -> None:
        while not done.wait(EVERY):
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
