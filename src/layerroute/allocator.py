"""How the C library gives memory back: by default every large tensor is new pages from the system, filled anew."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Let this process keep the memory of tensors that it has freed, for those to come.

    On a CPU glibc takes everything above 32 MiB from the system and gives it back at once, so that each such tensor
    costs a page fault every 4 KiB: of elementwise operations that is most of their time, of a forward pass a fifth.
    The price is memory: a tenth more at the peak, and up to 2 GiB that are kept. Where a ``MALLOC_...`` variable is
    set, the user has chosen already, and nothing is done.

    Returns:
        Whether it was done; never outside of Linux with glibc.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The first one is refused by older libraries, and by others: large tensors are then as slow as before.
    limits = {_MMAP_THRESHOLD: 1024 * _MIB, _TRIM_THRESHOLD: 2047 * _MIB, _TOP_PAD: 64 * _MIB}
    return all(mallopt(option, limit) == 1 for option, limit in limits.items())
