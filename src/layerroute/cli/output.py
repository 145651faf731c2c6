"""What commands write, whatever is at the other end: JSON alone on stdout, tables, bytes; and where they may write.

Every command prints through here, so that pipes, other encodings and other libraries' prints are met in one place.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from layerroute.integrity import replace_text

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 10_000
"""Columns of what is no terminal: a file or a pipe breaks no words."""


class _Descriptor:
    """Writes to an open file without a buffer: nothing is left for later, when the number is another file's."""

    def __init__(self, number: int, encoding: str) -> None:
        self.number, self.encoding = number, encoding

    def write(self, text: str) -> None:
        data = text.encode(self.encoding)
        while data:
            data = data[os.write(self.number, data) :]

    def flush(self) -> None:
        """There is nothing to flush."""


_results: list[TextIO | _Descriptor] = []  # where JSON goes, while all else that is printed goes to stderr


@contextlib.contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """While this lasts, stdout gets what ``print_json`` writes and nothing else; all other prints go to stderr.

    That of the process itself is guarded below Python, too: libraries in C and processes that are started print there.
    """
    if not wanted:
        yield
        return
    kept: int | None = None
    stdout: TextIO = sys.stdout
    out: TextIO | _Descriptor = stdout
    if stdout is sys.__stdout__ and _descriptor(stdout) == 1 and _descriptor(sys.stderr) == 2:
        stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        out = _Descriptor(kept, stdout.encoding)
    _results.append(out)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def command_line(name: str) -> str:
    """The command that runs, for records."""
    return shlex.join(["layerroute", name, *sys.argv[2:]])


def print_json(content: Any, *, indent: int | None = None) -> None:
    """One JSON value on stdout. Numbers that JSON does not know (infinite, not a number) are null."""
    out = _results[-1] if _results else sys.stdout
    text = json.dumps(_finite(content), indent=indent, ensure_ascii=False)
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(_finite(content), indent=indent)
    out.write(text + "\n")
    out.flush()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def make_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """A console that takes what it is given as text: no markup in paths, no colours of its own.

    Where it is no terminal, lines are as long as they are, unless ``COLUMNS`` says otherwise.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNLIMITED
    return console


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: text on the left, numbers on the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    make_console().print(made)


def write_text(text: str) -> None:
    """Text on stdout byte for byte, as UTF-8 whatever the locale says."""
    buffer = getattr(sys.stdout, "buffer", None)
    sys.stdout.flush()
    if buffer is None:
        sys.stdout.write(text)
    else:
        buffer.write(text.encode("utf-8", "surrogatepass"))
    sys.stdout.flush()


def write_json(path: Path, content: Any) -> None:
    """One JSON value as a file, whole or not at all; its folder is made. Numbers as ``print_json`` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(_finite(content), indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Rows, the headings first, as a CSV file in a folder that is there."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def never_fail_to_encode() -> None:
    """What stdout or stderr cannot spell in its encoding is printed with backslashes, and is no traceback.

    A process that was started without stdout or stderr prints to nowhere.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def folder(word: str) -> Path:
    """Type of an argument that names a folder to write to: checked while the command line is read, not after the work.

    The folder is not made yet.

    Raises:
        ArgumentTypeError: it is a file, or it, or the folder in which it would be made, cannot be written.
    """
    path = Path(word)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a file; name a folder")
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        # Asked by doing: rights, a disk that is full or read-only.
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{word} cannot be written ({error.strerror}); name another"
        ) from None
    return path


def file(word: str) -> Path:
    """Type of an argument that names a file to write: as ``folder``.

    Raises:
        ArgumentTypeError: it is a folder, or cannot be written.
    """
    path = Path(word)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{word} is a folder; name a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{word} cannot be written (Permission denied); name another")
    folder(str(path.parent))
    return path
