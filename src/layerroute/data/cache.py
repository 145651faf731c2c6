"""Folders that are built whole or not at all, and read only when every byte is as it was written.

A cache entry is a folder with a fixed set of files and a ``manifest.json``, which holds the size and SHA-256 of each
file and, of itself, a checksum. It is built aside and renamed into place; a lock makes a second process wait rather
than build the same entry too. An entry that is not intact is rebuilt, with one warning.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layerroute.errors import UserError

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

Manifest = dict[str, Any]

# Folder -> the stamps of its files when they were last found intact by this process.
_verified: dict[Path, tuple[tuple[int, int, int], ...]] = {}


class DamagedError(Exception):
    """A cache entry is not what was written; the message says what differs."""


def open_or_build(entry: Path, files: tuple[str, ...], build: Callable[[Path], Manifest]) -> Manifest:
    """Return the manifest of an intact ``entry``, building it first where it is missing or damaged.

    Args:
        entry: the folder. Its parent is made.
        files: names of the files that the entry holds beside its manifest.
        build: writes ``files`` into the folder it is given and returns the manifest without checksums.

    Raises:
        UserError: the disk is full, or the cache folder cannot be written. Nothing half-written stays.
    """
    with contextlib.suppress(DamagedError, OSError):
        return read_entry(entry, files)
    from filelock import FileLock, Timeout

    with _disk_errors(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.parent / f"{entry.name}.lock")
        try:
            lock.acquire(timeout=0.0)
        except Timeout:
            _log.warning("another process is preparing the same data; waiting for it")
            lock.acquire()
        try:
            return _build_locked(entry, files, build)
        finally:
            lock.release()


def _build_locked(entry: Path, files: tuple[str, ...], build: Callable[[Path], Manifest]) -> Manifest:
    try:
        return read_entry(entry, files)
    except FileNotFoundError:
        pass
    except DamagedError as damage:
        _log.warning("the token cache %s is damaged (%s); rebuilding it", entry, damage)
    # The lock is held, so what is there already is of a process that was killed.
    aside = entry.parent / f".build-{entry.name}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        fresh = aside / "fresh"
        fresh.mkdir(parents=True)
        _seal(fresh, files, build(fresh))
        if entry.exists():
            os.rename(entry, aside / "old")
        os.rename(fresh, entry)
        _sync(entry.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return read_entry(entry, files)


def read_entry(entry: Path, files: tuple[str, ...]) -> Manifest:
    """Return the manifest of ``entry`` after comparing every file with it, byte for byte through SHA-256.

    A second call in one process compares sizes and times of change only.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: a file is missing, or differs from what was written.
    """
    if not entry.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such cache entry", str(entry))
    try:
        return _read_entry(entry, files)
    except PermissionError:
        raise
    except OSError as error:
        name = Path(str(error.filename)).name if error.filename else "a file"
        raise DamagedError(f"{name} cannot be read: {error.strerror}") from error


def _read_entry(entry: Path, files: tuple[str, ...]) -> Manifest:
    manifest = _read_manifest(entry / MANIFEST)
    stamps = tuple(_stamp(entry / name) for name in (MANIFEST, *files))
    if _verified.get(entry) == stamps:
        return manifest
    for name in files:
        listed = manifest["files"].get(name)
        if listed is None:
            raise DamagedError(f"{MANIFEST} does not list {name}")
        path = entry / name
        if path.stat().st_size != listed["bytes"]:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {listed['bytes']}")
        if file_sha256(path) != listed["sha256"]:
            raise DamagedError(f"the SHA-256 of {name} differs")
    _verified[entry] = stamps
    return manifest


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _seal(folder: Path, files: tuple[str, ...], manifest: Manifest) -> None:
    """Write the manifest with the size and SHA-256 of ``files``, and put all of it on the disk."""
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in files
    }
    (folder / MANIFEST).write_bytes(_manifest_bytes({**manifest, "files": listed}))
    for name in (*files, MANIFEST):
        _sync(folder / name)
    _sync(folder)


def _manifest_bytes(manifest: Manifest) -> bytes:
    def text(content: Manifest) -> bytes:
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()

    checksum = hashlib.sha256(text(manifest)).hexdigest()
    return text({**manifest, "checksum": checksum})


def _read_manifest(path: Path) -> Manifest:
    """Read a manifest and compare its bytes with the only ones that its content could have been written as."""
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        del manifest["checksum"]
        intact = _manifest_bytes(manifest) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
    if not intact:
        raise DamagedError(f"the checksum of {path.name} differs")
    return dict(manifest)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into one line with the way out."""
    way_out = "set data.cache_dir or LAYERROUTE_CACHE to a folder"
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left for the token cache in {folder} ({error.strerror}); free some, or {way_out} on "
                "another disk; nothing half-written was left"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"the token cache {folder} cannot be written ({error.strerror}); {way_out} that can"
            ) from error
        raise
