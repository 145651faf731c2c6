"""How the C library gives memory back: by default every large tensor is new pages from the system, filled anew."""

import ctypes
import os
import sys

_OPTIONS = {"TRIM_THRESHOLD": -1, "TOP_PAD": -2, "MMAP_THRESHOLD": -3}  # of malloc.h
_MIB = 1 << 20
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
