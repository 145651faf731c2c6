"""Who works on a run, so that its death can be noticed at once on the same machine."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path


def worker_name() -> str:
    """``host:pid:mark``; the mark tells this process from others that had or will have its number."""
    number = os.getpid()
    return f"{socket.gethostname()}:{number}:{_mark(number)}"


def known_dead(name: str) -> bool:
    """Whether a worker of this machine is gone. False for workers elsewhere: only their heartbeat can tell."""
    host, _, rest = name.rpartition(":")[0].rpartition(":")
    mark = name.rpartition(":")[2]
    if host != socket.gethostname() or not rest.isdigit() or mark.partition("-")[0] != _machine():
        return False
    number = int(rest)
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return _mark(number) != mark


def _mark(number: int) -> str:
    started = ""
    with suppress(OSError, IndexError):
        # Field 22, after the command's name, which may hold blanks and brackets.
        status = (
            Path(f"/proc/{number}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
        started = "dead" if status[0] in "ZX" else status[19]
    return f"{_machine()}-{started}"


def _machine() -> str:
    """Containers may share a host's name: this boot and this table of processes are meant."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]
