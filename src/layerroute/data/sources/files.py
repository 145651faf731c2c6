"""Local files: text and records (see ``records.py``), plain or compressed, named by path, folder or glob."""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from layerroute.data.sources.base import Document, listing
from layerroute.data.sources.readers import InputFile, NoTextError
from layerroute.data.sources.records import format_name, read_documents
from layerroute.errors import UserError, nearest
from layerroute.integrity import file_sha256

_log = logging.getLogger(__name__)


class FilesSource:
    """Documents of local files: one a text file (or a part, see ``separator``), one a line or row elsewhere.

    Paths keep their order; folders (searched below, hidden entries left out) and globs (``**`` allowed) give their
    files sorted by name; a file named twice is read once. A folder may hold other things than text: its files without
    text (binary, empty, JSON without records, tables without the column) are skipped, with one line that says how
    many. A file given by name or glob must be usable.

    Args:
        paths: files, folders or globs; ``~`` is the home folder.
        text_field: key or column of the text in records.
        separator: string that parts the documents of a text file; None: one document a file.

    Raises:
        UserError: a path that does not exist (with the nearest name beside it), a glob or folder without files.
    """

    def __init__(self, paths: list[str], *, text_field: str, separator: str | None) -> None:
        self._text_field = text_field
        self._separator = separator
        self._files: list[tuple[InputFile, bool]] = []
        seen: set[str] = set()
        for given in paths:
            files, strict = _expand(given)
            for path, name in files:
                if (real := os.path.realpath(path)) not in seen:
                    seen.add(real)
                    self._files.append((InputFile.of(path, name), strict))

    @property
    def real_paths(self) -> list[str]:
        """Where the files are."""
        return [os.path.realpath(file.path) for file, _ in self._files]

    def describe(self) -> str:
        return f"files {listing([file.path.name for file, _ in self._files])}"

    def fingerprint(self) -> str:
        """Digest of the files' content and of how it is read. Names and dates do not count: a copy is the same."""
        digest = hashlib.sha256(f"files {json.dumps([self._text_field, self._separator])}".encode())
        for file, strict in self._files:
            try:
                content = file_sha256(file.path)
            except OSError as error:
                raise UserError(
                    f"cannot read {file.name}: {error.strerror or error}; make it readable"
                ) from error
            digest.update(f"{format_name(file)}{file.compression} {strict} {content}\n".encode())
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        sizes = [max(1, file.path.stat().st_size) if file.path.exists() else 1 for file, _ in self._files]
        total, before = sum(sizes), 0
        skipped: list[str] = []
        for (file, strict), size in zip(self._files, sizes, strict=True):
            try:
                for name, text, position in read_documents(
                    file, text_field=self._text_field, separator=self._separator
                ):
                    yield Document(name, text, (before + size * (position or 0.0)) / total)
            except NoTextError:
                if strict:
                    raise
                skipped.append(file.name)
            before += size
        if skipped:
            _log.warning("skipped %d files without text: %s", len(skipped), listing(skipped))


def _expand(given: str) -> tuple[list[tuple[Path, str]], bool]:
    """Return the (path, name) pairs that ``given`` stands for, and whether each must be usable."""
    # `os.path` finds nothing where `Path` raises: under names that are too long, or of a user who is not there.
    path = Path(os.path.expanduser(given))
    if os.path.isdir(path):
        inside = files_below(path)
        if not inside:
            raise UserError(
                f"the folder {given} holds no files (hidden ones do not count); give one with text"
            )
        return inside, False
    if os.path.exists(path):
        if not path.is_file():
            raise UserError(f"{given} is neither a file nor a folder; give a file that holds text")
        return [(path, path.name)], True
    if glob.has_magic(given):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        found = [(match, match.name) for match in matches if match.is_file()]
        if not found:
            raise UserError(f"no file matches {given} (seen from {Path.cwd()}); check the pattern")
        return found, True
    beside = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    hint = nearest(path.name, beside) if beside else ""
    if "Did you mean" not in hint:
        hint = f" Relative paths start at {Path.cwd()}." if not path.is_absolute() else ""
    raise UserError(f"there is no file or folder {given:.200}.{hint}")


def files_below(folder: Path) -> list[tuple[Path, str]]:
    """Return path and relative name of all files below ``folder`` that are not hidden, sorted by name."""

    def fail(error: OSError) -> None:
        raise UserError(
            f"cannot read the folder {error.filename}: {error.strerror}; make it readable"
        ) from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                found.append((path, path.relative_to(folder).as_posix()))
    return sorted(found, key=lambda item: item[1])
