"""Folders that are built whole or not at all, and read only when every byte is as it was written.

A cache entry is a folder with a ``manifest.json``, which holds the size and SHA-256 of each file and, of itself, a
checksum. It is built aside and renamed into place; a lock makes a second process wait rather than build the same entry
too. An entry that is not intact is rebuilt, with one warning. No torch here.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from layerroute.errors import UserError
from layerroute.integrity import MANIFEST, DamagedError, Manifest, seal, sync, verify

_log = logging.getLogger(__name__)


_UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
}
WAY_OUT = "set LAYERROUTE_CACHE to a folder"


def cache_folder(chosen: str | None = None) -> Path:
    """The folder of all caches: ``chosen``, ``$LAYERROUTE_CACHE`` or ``~/.cache/layerroute``.

    Raises:
        UserError: it begins with a home folder that is not known here.
    """
    folder = os.path.expanduser(chosen or os.environ.get("LAYERROUTE_CACHE") or "~/.cache/layerroute")
    if folder.startswith("~"):
        raise UserError(
            f"the cache folder {folder} begins with a home folder that is not known here; {WAY_OUT}"
        )
    return Path(folder)


def open_or_build(
    entry: Path,
    files: tuple[str, ...],
    build: Callable[[Path], Manifest],
    *,
    what: str,
    way_out: str = WAY_OUT,
) -> Manifest:
    """Return the manifest of an intact ``entry``, building it first where it is missing or damaged.

    Args:
        entry: the folder. Its parent is made.
        files: names of files that the entry must hold; whatever else ``build`` writes is sealed with them.
        build: writes into the folder it is given and returns the manifest without checksums.
        what: what is cached, for messages: ``token cache``.
        way_out: how a full or read-only disk is avoided, for messages: "set … to a folder".

    Raises:
        UserError: the disk is full, or the cache folder cannot be written. Nothing half-written stays.
    """
    with contextlib.suppress(DamagedError, OSError):
        return read_entry(entry, files)
    from filelock import FileLock, Timeout

    with disk_errors(entry.parent, what, way_out):
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.parent / f"{entry.name}.lock")
        try:
            lock.acquire(timeout=0.0)
        except Timeout:
            _log.warning("another process is making the same %s; waiting for it", what)
            lock.acquire()
        try:
            return _build_locked(entry, files, build, what)
        finally:
            lock.release()


def _build_locked(
    entry: Path, files: tuple[str, ...], build: Callable[[Path], Manifest], what: str
) -> Manifest:
    try:
        return read_entry(entry, files)
    except FileNotFoundError:
        pass
    except DamagedError as damage:
        _log.warning("the %s %s is damaged (%s); rebuilding it", what, entry, damage)
    replace_folder(entry, build)  # the lock is held: what lies beside it is of a process that was killed
    return read_entry(entry, files)


def replace_folder(path: Path, write: Callable[[Path], Manifest | None]) -> None:
    """Let ``write`` fill an empty folder beside ``path``, seal it, and put it in the place of ``path`` in one move.

    A write that fails leaves what was there, and nothing else; what a killed process left half-way is brought to its
    end first, as ``recover_folder`` does.

    Args:
        write: returns what else the manifest is to say.
    """
    recover_folder(path)
    aside, old = _beside(path)
    aside.mkdir(parents=True)
    try:
        seal(aside, write(aside))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Bring a replacement that a killed process began to its end, or undo it; afterwards only ``path`` is left."""
    aside, old = _beside(path)
    if not path.exists() and old.exists():
        # The old folder is moved away only when the new one is whole.
        os.replace(aside if aside.exists() else old, path)
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.saving"), path.with_name(f".{path.name}.old")


def read_entry(entry: Path, files: tuple[str, ...]) -> Manifest:
    """Return the manifest of ``entry`` after comparing every file with it, byte for byte through SHA-256.

    A second call in one process compares sizes and times of change only.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedError: a file is missing, or differs from what was written.
    """
    if not entry.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such cache entry", str(entry))
    manifest = verify(entry, exact=False)
    for name in files:
        if name not in manifest["files"]:
            raise DamagedError(f"{MANIFEST} does not list {name}")
    return manifest


@contextlib.contextmanager
def disk_errors(folder: Path, what: str, way_out: str) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into one line with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"no space left for the {what} in {folder} ({error.strerror}); free some, or {way_out} on "
                "another disk; nothing half-written was left"
            ) from error
        nowhere = error.errno == errno.ENOENT and str(folder).startswith(str(error.filename))
        if error.errno in _UNWRITABLE or nowhere:
            raise UserError(
                f"the {what} {folder} cannot be written ({error.strerror}); {way_out} that can"
            ) from error
        raise
