"""Files that are what was written, and names that stay in their folder. No torch here.

A *manifest* lists the files of a folder with their sizes and SHA-256 sums and, of itself, a checksum. It is written
last. It tells damage, not malice: whoever can change a file can write a manifest that fits.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from layerroute.errors import UserError

MANIFEST = "manifest.json"

Manifest = dict[str, Any]

_LARGEST_MANIFEST = 64 << 20

_LITTER = (".nfs", ".DS_Store")  # left by network file systems and by macOS

# Folder -> the stamps of its files when they were last found intact by this process.
_verified: dict[Path, tuple[tuple[int, int, int], ...]] = {}


class DamagedError(Exception):
    """A file or folder is not what was written; the message says what differs."""


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside a file to write to, and put what was written in the file's place: never half of it.

    Each process writes to a name of its own, so that two may write the same file at once; the last one counts. Nothing
    is written through a link to somewhere else, and what fails leaves what was there.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def clear_asides(folder: Path) -> None:
    """Remove what ``replacing`` left of a process that was killed. Nobody else may be writing in ``folder``."""
    for left in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", left.name) and left.is_file():
            left.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write a text in the place of a file, as ``replacing`` does."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def checksummed(content: Mapping[str, Any], **style: bool) -> bytes:
    """``content`` as JSON with one key more: ``checksum``, the SHA-256 of the JSON without it.

    Args:
        style: of ``json.dumps``.
    """

    def text(content: Mapping[str, Any]) -> bytes:
        return (json.dumps(content, indent=2, **style) + "\n").encode()  # type: ignore[arg-type]

    return text({**content, "checksum": hashlib.sha256(text(content)).hexdigest()})


def inside(folder: Path, name: str) -> Path:
    """The file that a manifest, index or record calls ``name``, which must lie in ``folder``.

    Raises:
        UserError: the name is absolute, climbs out with ``..``, is empty, or leads out through a symbolic link.
    """
    pure = PurePosixPath(name.replace("\\", "/"))
    leaves = not pure.parts or pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]
    if leaves or "\0" in name:
        raise UserError(f"{folder} names the file {name!r}, which lies outside of it; nothing was read")
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} names the file {name!r}, which leads out of it; nothing was read")
    return path


def content_files(folder: Path) -> list[str]:
    """Names of all files of ``folder`` at any depth, as POSIX paths, without the manifest and what systems leave."""
    names = []
    for where, _, files in os.walk(folder):
        top = Path(where) == folder
        names += [
            (Path(where) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(_LITTER) and not (top and name == MANIFEST)
        ]
    return sorted(names)


def content_sha256(folder: Path, *, without: str | None = None) -> str:
    """Digest of all files of a folder, by name and content, but for a folder in it called ``without``."""
    digest = hashlib.sha256()
    for name in content_files(folder):
        if without not in name.split("/")[:-1]:
            digest.update(f"{name} {file_sha256(folder / name)} ".encode())
    return digest.hexdigest()


def seal(folder: Path, about: Mapping[str, Any] | None = None) -> Manifest:
    """Write the manifest of ``folder`` and force everything in it to the disk.

    Args:
        about: what else the manifest is to say.
    """
    names = content_files(folder)
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
    }
    manifest = {**(about or {}), "files": listed}
    (folder / MANIFEST).write_bytes(checksummed(manifest, sort_keys=True))
    for name in (*names, MANIFEST):
        sync(folder / name)
    for inner in sorted({(folder / name).parent for name in names} | {folder}):
        sync(inner)
    return manifest


def verify(folder: Path, *, exact: bool = True) -> Manifest:
    """Return the manifest of ``folder`` after comparing every listed file with it.

    A second call in one process compares sizes and times of change only.

    Args:
        exact: files that the manifest does not list are damage, too.

    Raises:
        DamagedError: there is no manifest, or a file is missing, differs, or (``exact``) is not listed.
        PermissionError: a file may not be read.
    """
    try:
        manifest = read_manifest(folder / MANIFEST)
        listed = manifest["files"]
        paths = {name: _listed_path(folder, name) for name in listed}
        if exact and (more := sorted(set(content_files(folder)) - set(listed))):
            raise DamagedError(f"it holds {more[0]}, which {MANIFEST} does not list")
        stamps = tuple(_stamp(path) for path in (folder / MANIFEST, *paths.values()))
        if _verified.get(folder) == stamps:
            return manifest
        for name, path in paths.items():
            compare(path, name, listed[name])
    except PermissionError:
        raise
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        name = Path(str(error.filename)).name if error.filename else "a file"
        raise DamagedError(f"{name} cannot be read: {error.strerror}") from error
    except (TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} does not list files") from error
    _verified[folder] = stamps
    return manifest


def check_intact(folder: Path) -> None:
    """Hold a saved model or router against its manifest, if it has one.

    Raises:
        UserError: a file is not what was written.
    """
    if not (folder / MANIFEST).exists():
        return
    try:
        verify(folder, exact=False)
    except DamagedError as damage:
        raise UserError(
            f"{folder} is damaged ({damage}); take another checkpoint. If a file was changed on purpose, remove "
            f"{MANIFEST}"
        ) from damage


def compare(path: Path, name: str, listed: Mapping[str, Any]) -> None:
    """Hold one file against its entry ``{bytes, sha256}``. Raises DamagedError where they differ."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to read a pipe is to wait for ever
        raise DamagedError(f"{name} is not a regular file")
    if status.st_size != listed["bytes"]:
        raise DamagedError(f"{name} has {status.st_size} bytes instead of {listed['bytes']}")
    if file_sha256(path) != listed["sha256"]:
        raise DamagedError(f"the SHA-256 of {name} differs")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and compare its bytes with the only ones that its content could have been written as.

    Raises:
        DamagedError: they differ, or it is not a manifest. OSError where it cannot be read.
    """
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise DamagedError(f"{path.name} is too large to be one")
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        del manifest["checksum"]
        intact = checksummed(manifest, sort_keys=True) == data
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
    if not intact:
        raise DamagedError(f"the checksum of {path.name} differs")
    return dict(manifest)


def _listed_path(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except UserError as error:
        raise DamagedError(f"{MANIFEST} lists {name!r}, which lies outside of the folder") from error


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino
