"""The same work for each of several numbers, on all cores where that is safe."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_work: list[Callable[[int], Any]] = []
"""Of a forked process."""


def on_all_cores(work: Callable[[int], T], count: int) -> Iterator[T]:
    """``work(0)``, ``work(1)`` … ``work(count - 1)``, in this order.

    A process without other threads forks for it, on Linux; anywhere else one follows the other. What is changed in
    memory is lost with the fork; files and results, which must pickle, stay.
    """
    # Only Linux has this, and only there a fork is safe with what is loaded.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if min(cores, count) < 2 or threading.active_count() > 1 or "torch" in sys.modules:
        yield from map(work, range(count))
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(cores, count), context, initializer=_begin, initargs=(work,)) as pool:
        yield from pool.map(_do, range(count))


def _begin(work: Callable[[int], Any]) -> None:
    _work.append(work)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits


def _do(number: int) -> Any:
    return _work[0](number)
