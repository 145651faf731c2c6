"""Whether the process that trains in a folder is still there.

It holds an exclusive lock on ``.lock`` in the folder, which the system takes from it however it ends, and touches the
file while it works. Another process sees it alive if the lock is taken. Where locks do not reach across hosts (some
network file systems), a lock that looks free on another host than the trainer's counts only if the file has not been
touched for ``STALE_SECONDS``. Where there are no locks at all, the file says which host trains as long as it does, and
two processes that start in one folder at the same time are not kept apart.
"""

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = ".lock"
STALE_SECONDS = 900.0
_BEAT_SECONDS = 30.0
_LOOK_SECONDS = 0.01


class Heartbeat:
    """Touches the lock file of a folder, at most every half minute."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._last = time.monotonic()

    def beat(self) -> None:
        """Say that the run is alive; a file system that fails here is left to tell its error elsewhere."""
        if time.monotonic() - self._last >= _BEAT_SECONDS:
            self._last = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(self.path)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Take the lock of ``folder`` for as long as the context lasts; the value says whether it was free."""
    path = folder / LOCK
    if path.is_symlink():  # of a folder that came from somebody else: what it points to is not ours to write
        path.unlink()
    with path.open("a+") as file:
        locked = True
        try:
            if not _taken(file):
                yield False
                return
        except OSError:  # a file system without locks: Lustre mounted without flock, some FUSE
            locked = False
        file.truncate(0)
        file.write(f"{platform.node()}\n")
        file.flush()
        try:
            yield True
        finally:
            if not locked:  # nothing else would tell that it has ended
                with contextlib.suppress(OSError):
                    file.truncate(0)


def _taken(file: IO[str]) -> bool:
    """Take the lock, unless another process trains. Who only looks (``is_alive``) shares it for a moment."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(_LOOK_SECONDS)


def is_alive(folder: Path) -> bool:
    """Whether some process trains in ``folder``. Nothing is written."""
    path = folder / LOCK
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            here = file.read().strip() == platform.node()
            return not here and time.time() - os.fstat(file.fileno()).st_mtime < STALE_SECONDS
    except FileNotFoundError:
        return False
    except OSError:
        # No locks on this file system, or no right to look: the clock alone has to say, and a name that is gone.
        with contextlib.suppress(OSError):
            status = path.stat()
            return status.st_size > 0 and time.time() - status.st_mtime < STALE_SECONDS
        return False
