"""The bytes of one file: what they are, decompression, and plain text. What is made of them: see ``records.py``.

Formats go by the name's endings (``.jsonl.xz``: JSON Lines under xz) and are checked against the content, so that
a misnamed, damaged or binary file is told as such and never becomes text to train on.
"""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

from layerroute.errors import UserError, require

MAXIMUM_DOCUMENT_BYTES = 1 << 30
"""One document is held in memory; a longer one (or a decompression bomb) is refused."""

_BLOCK = 1 << 20
_NAMED = {
    ".gz": (b"\x1f\x8b", "gzip data"),
    ".xz": (b"\xfd7zXZ\x00", "xz data"),
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd data"),
    ".bz2": (b"BZh", "bzip2 data"),
    ".parquet": (b"PAR1", "a parquet file"),
}
"""By ending, how such a file begins and what it is."""
_SKIPPED_FRAMES = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))
"""Parallel compressors and seekable archives begin zstd data with one."""
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda raw: gzip.GzipFile(fileobj=raw),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
}
_COMPRESSIONS = (*_OPENERS, ".zst")
_KNOWN_CONTENT = (
    *((magic, f"{what}; name it {ending}") for ending, (magic, what) in _NAMED.items()),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"%PDF", "a PDF; extract its text first"),
    (b"\xff\xfe", "UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"),
)
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"


class NoTextError(UserError):
    """The file is empty, blank or binary, or its records hold no text.

    Folders skip such files; files that were named are refused.
    """


@dataclass(frozen=True)
class InputFile:
    """A file to read: its path, the name for messages, and what its name says of its content.

    Attributes:
        ending: of the name, without that of the compression: ``.jsonl``, or empty.
        compression: ``.gz``, ``.xz``, ``.bz2``, ``.zst``, or empty.
    """

    path: Path
    name: str
    ending: str
    compression: str

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        suffixes = [suffix.lower() for suffix in path.suffixes]
        compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
        return cls(path, name, suffixes[-1] if suffixes else "", compression)


@contextlib.contextmanager
def opened(file: InputFile) -> Iterator[IO[bytes]]:
    """The file's own bytes, which are not empty and begin as its name says.

    Raises:
        NoTextError: an empty file.
        UserError: missing or unreadable; named otherwise than it is; what is read within is damaged or truncated.
    """
    with _told(file), file.path.open("rb") as raw:
        if file.path.stat().st_size == 0:
            raise NoTextError(f"{file.name} is empty; give a file that holds text")
        _check_magic(file, raw)
        yield raw


@contextlib.contextmanager
def _told(file: InputFile) -> Iterator[None]:
    """Turn what the decompressors and the file system raise into one line that names the file."""
    kind = file.compression.lstrip(".")
    try:
        yield
    except EOFError as error:
        raise UserError(f"{file.name} is truncated: its {kind} data ends too early; copy it again") from error
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file.name} is damaged ({kind}: {error}); copy it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{file.name} is gone since it was listed; put it back") from error
    except OSError as error:
        if kind and error.errno is None:  # bz2 and zstd report bad data so
            problem = "truncated" if "runcated" in str(error) else "damaged"
            raise UserError(f"{file.name} is {problem} ({kind}: {error}); copy it again") from error
        raise UserError(f"cannot read {file.name}: {error.strerror or error}; make it readable") from error


def _check_magic(file: InputFile, raw: IO[bytes]) -> None:
    suffix = file.compression or file.ending
    if suffix not in _NAMED:
        return
    head = raw.read(8)
    raw.seek(0)
    if not head.startswith((_NAMED[suffix][0], *(_SKIPPED_FRAMES if suffix == ".zst" else ()))):
        found = (_content(head) or "other data").split(";")[0]
        raise UserError(
            f"{file.name} is named {suffix} but holds {found}; rename it to what it is, or copy it again"
        )


def _content(head: bytes) -> str | None:
    """What bytes with this beginning are, and what to do about it."""
    return next((what for magic, what in _KNOWN_CONTENT if head.startswith(magic)), None)


def decompressed(file: InputFile, raw: IO[bytes]) -> io.BufferedReader:
    """What is under the compression."""
    if opener := _OPENERS.get(file.compression):
        return io.BufferedReader(opener(raw), _BLOCK)
    if file.compression == ".zst":
        require("pyarrow", extra="data")
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), _BLOCK)
    return cast(io.BufferedReader, raw)


def not_text(file: InputFile, where: str, head: bytes) -> NoTextError:
    """What to raise for bytes that are no UTF-8 text; ``where`` says how that shows, ``head`` are the first of them."""
    if what := _content(head):
        return NoTextError(f"{file.name} is not UTF-8 text but {what}")
    return NoTextError(
        f"{file.name} is binary, not UTF-8 text ({where}); give text, or convert it (iconv -t UTF-8) first"
    )


def text_parts(file: InputFile, stream: IO[bytes], separator: str | None = None) -> Iterator[str]:
    """Read ``stream`` as UTF-8 without its byte order mark, newlines as they are, and part it at each ``separator``.

    None: one part. Memory holds a part and a block, however long the stream is.
    """
    pieces: list[str] = []
    held = tail = ""  # the tail may hold the beginning of a separator
    size = 0
    for text, taken in _decoded(file, stream):
        size += taken
        held, *more = (tail + text).split(separator) if separator else [text]
        for following in more:
            yield "".join((*pieces, held))
            pieces, held, size = [], following, 0
        if size > MAXIMUM_DOCUMENT_BYTES:
            raise too_long(file)
        end = max(0, len(held) + 1 - len(separator)) if separator else len(held)
        tail = held[end:]
        pieces.append(held[:end])
    yield "".join((*pieces, tail))


def _decoded(file: InputFile, stream: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Blocks of text, and how many bytes each was."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    size, head = 0, b""
    while True:
        block = stream.read(_BLOCK)
        head = head or block[:64]
        if (zero := block.find(0)) >= 0:
            raise not_text(file, f"a zero byte at {size + zero}", head)
        if size == 0 and len(block.translate(None, _CONTROL)) < 0.9 * len(block):
            raise not_text(file, "control characters", head)
        size += len(block)
        try:
            yield decoder.decode(block, final=not block), len(block)
        except UnicodeDecodeError as error:
            where = f"{error.reason} before byte {size}" if block else "an unfinished character at the end"
            raise not_text(file, where, head) from error
        if not block:
            return


def too_long(file: InputFile) -> UserError:
    """What to raise for a document that is not to be held in memory."""
    return UserError(
        f"{file.name} holds a document of more than {MAXIMUM_DOCUMENT_BYTES >> 30} GiB; set "
        "data.document_separator, or give JSON Lines with one document a line"
    )
