"""What commands set for their process: how freed memory is kept, and how idle threads wait for work."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

_OPTIONS = {"TRIM_THRESHOLD": -1, "TOP_PAD": -2, "MMAP_THRESHOLD": -3}  # of malloc.h
_MIB = 1 << 20
_WAITING, _OWN = "OMP_WAIT_POLICY", "LAYERROUTE_OMP_WAIT_POLICY"
_KEEPING = {"MMAP_THRESHOLD": 1024 * _MIB, "TRIM_THRESHOLD": 2047 * _MIB, "TOP_PAD": 64 * _MIB}


def keep_freed_memory() -> bool:
    """Let this process keep the memory of tensors that it has freed, for those to come.

    On a CPU glibc takes everything above 32 MiB from the system and gives it back at once, so that each such tensor
    costs a page fault every 4 KiB: of elementwise operations that is most of their time, of a forward pass a fifth.
    The price is memory: a tenth more at the peak, and up to 2 GiB that are kept. Where a ``MALLOC_...`` variable is
    set, the user has chosen already, and nothing is done.

    Returns:
        Whether it was done; never outside of Linux with glibc.
    """
    # The first one is refused by older libraries, and by others: large tensors are then as slow as before.
    return _set(_KEEPING)


def keeping_variables() -> dict[str, str]:
    """The same for a process that is yet to start: what its environment needs, nothing where the user has chosen."""
    return {} if _chosen() else {f"MALLOC_{option}_": str(limit) for option, limit in _KEEPING.items()}


def give_freed_memory_back() -> bool:
    """The opposite, for work that fills and empties the memory again and again: what is kept has gaps, which add up.

    A model of 7 billion parameters whose layers are fetched one by one takes 14 GiB so, and 5 without.

    Returns:
        Whether it was done.
    """
    return _set({"MMAP_THRESHOLD": 32 * _MIB, "TRIM_THRESHOLD": 128 * _MIB, "TOP_PAD": _MIB})


def _set(limits: dict[str, int]) -> bool:
    if not sys.platform.startswith("linux") or _chosen():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(_OPTIONS[name], limit) == 1 for name, limit in limits.items())


def _chosen() -> bool:
    return any(name.startswith("MALLOC_") for name in os.environ)


def sleep_while_idle() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has chosen. Before torch is imported.

    Threads that spin lose most of their time where cores are shared: with two busy neighbours a training step on 2
    threads took 20 times as long. In return, each parallel part of a step begins a little later.
    """
    if _WAITING not in os.environ:
        os.environ[_WAITING] = os.environ[_OWN] = "PASSIVE"


def wait_by_default() -> None:
    """Undo ``sleep_while_idle`` for what is yet to start: an engine has its cores to itself, and many short steps.

    vLLM decodes a third faster so on two idle cores, with or without a router (docs/LOG.md).
    """
    if os.environ.pop(_OWN, None) is not None:
        del os.environ[_WAITING]


@contextlib.contextmanager
def waiting_by_default() -> Iterator[None]:
    """The same for processes that are started meanwhile."""
    own = _OWN in os.environ
    wait_by_default()
    try:
        yield
    finally:
        if own:
            sleep_while_idle()
