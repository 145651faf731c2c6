"""Reading one file: what its bytes are, decompression, and the three formats (text, JSON Lines, parquet).

Formats go by the name's endings (``.jsonl.xz``: JSON Lines under xz) and are checked against the content, so that
a misnamed, damaged or binary file is told as such and never becomes text to train on.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from layerroute.data.sources.base import Document, clean_text
from layerroute.errors import UserError, nearest

Format = Literal["text", "jsonl", "parquet"]

MAXIMUM_DOCUMENT_BYTES = 1 << 30
"""One document is held in memory; a longer one (or a decompression bomb) is refused."""

_BLOCK = 1 << 20
_MAGIC = {
    ".gz": b"\x1f\x8b",
    ".xz": b"\xfd7zXZ\x00",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".bz2": b"BZh",
    ".parquet": b"PAR1",
}
_COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_KNOWN_CONTENT = (
    (b"\x1f\x8b", "gzip data; name it .gz"),
    (b"\xfd7zXZ\x00", "xz data; name it .xz"),
    (b"\x28\xb5\x2f\xfd", "zstd data; name it .zst"),
    (b"BZh", "bzip2 data; name it .bz2"),
    (b"PAR1", "a parquet file; name it .parquet"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"%PDF", "a PDF; extract its text first"),
    (b"\xff\xfe", "UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8"),
)
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"


class NoTextError(UserError):
    """The file is empty, blank or binary. Folders skip such files; files that were named are refused."""


@dataclass(frozen=True)
class InputFile:
    """A file to read: its path, the name for messages, and what its name says of its content."""

    path: Path
    name: str
    format: Format
    compression: str

    @classmethod
    def of(cls, path: Path, name: str) -> InputFile:
        suffixes = [suffix.lower() for suffix in path.suffixes]
        compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
        return cls(path, name, _FORMATS.get(suffixes[-1], "text") if suffixes else "text", compression)


def read_documents(file: InputFile, *, text_field: str, separator: str | None) -> Iterator[Document]:
    """Yield the documents of one file; ``position`` is the share of its bytes read so far.

    Raises:
        NoTextError: empty or blank file, or a text file that is not UTF-8 text.
        UserError: missing, unreadable, damaged or truncated file; JSON Lines or parquet without
            ``text_field``, or with something else than text in it.
    """
    found = False
    with _told(file), file.path.open("rb") as raw:
        size = file.path.stat().st_size
        if size == 0:
            raise NoTextError(f"{file.name} is empty; give a file that holds text")
        _check_magic(file, raw)
        for name, text in _parse(file, raw, text_field, separator):
            found = True
            yield Document(name, text, min(1.0, raw.tell() / size))
    if not found:
        raise NoTextError(f"{file.name} holds no text (only blanks or empty records); give a file that does")


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
    suffix = file.compression or (".parquet" if file.format == "parquet" else "")
    if not suffix:
        return
    head = raw.read(8)
    raw.seek(0)
    if not head.startswith(_MAGIC[suffix]):
        raise UserError(
            f"{file.name} is named {suffix} but holds {_content(head)}; rename it to what it is, or copy it again"
        )


def _content(head: bytes) -> str:
    for magic, what in _KNOWN_CONTENT:
        if head.startswith(magic):
            return what.split(";")[0]
    return "other data"


def _parse(
    file: InputFile, raw: IO[bytes], text_field: str, separator: str | None
) -> Iterator[tuple[str, str]]:
    if file.format == "parquet":
        yield from _parquet(file, raw, text_field)
        return
    stream = _decompressed(file, raw)
    if file.format == "jsonl":
        yield from _json_lines(file, stream, text_field)
        return
    text = _whole_text(file, stream)
    parts = text.split(separator) if separator else [text]
    for index, part in enumerate(parts):
        if part.strip():
            yield (file.name if len(parts) == 1 else f"{file.name}#{index}"), part


def _decompressed(file: InputFile, raw: IO[bytes]) -> io.BufferedReader:
    if file.compression == ".gz":
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw)), _BLOCK)
    if file.compression == ".xz":
        return io.BufferedReader(cast(io.RawIOBase, lzma.LZMAFile(raw)), _BLOCK)
    if file.compression == ".bz2":
        return io.BufferedReader(cast(io.RawIOBase, bz2.BZ2File(raw)), _BLOCK)
    if file.compression == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), _BLOCK)
    return cast(io.BufferedReader, raw)


def _not_text(file: InputFile, where: str, head: bytes) -> NoTextError:
    for magic, what in _KNOWN_CONTENT:
        if head.startswith(magic):
            return NoTextError(f"{file.name} is not UTF-8 text but {what}")
    return NoTextError(
        f"{file.name} is binary, not UTF-8 text ({where}); give text, or convert it (iconv -t UTF-8) first"
    )


def _whole_text(file: InputFile, stream: IO[bytes]) -> str:
    """Read all of ``stream`` as UTF-8 without its byte order mark, newlines as they are."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    pieces: list[str] = []
    size, head = 0, b""
    while block := stream.read(_BLOCK):
        head = head or block[:64]
        if (zero := block.find(0)) >= 0:
            raise _not_text(file, f"a zero byte at {size + zero}", head)
        if size == 0 and len(block.translate(None, _CONTROL)) < 0.9 * len(block):
            raise _not_text(file, "control characters", head)
        size += len(block)
        if size > MAXIMUM_DOCUMENT_BYTES:
            raise _too_long(file)
        try:
            pieces.append(decoder.decode(block))
        except UnicodeDecodeError as error:
            raise _not_text(file, f"{error.reason} before byte {size}", head) from error
    try:
        pieces.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise _not_text(file, "an unfinished character at the end", head) from error
    return "".join(pieces)


def _too_long(file: InputFile) -> UserError:
    return UserError(
        f"{file.name} holds a document of more than {MAXIMUM_DOCUMENT_BYTES >> 30} GiB; set "
        "data.document_separator, or give JSON Lines with one document a line"
    )


def _json_lines(file: InputFile, stream: io.BufferedReader, text_field: str) -> Iterator[tuple[str, str]]:
    number = 0
    while line := stream.readline(MAXIMUM_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAXIMUM_DOCUMENT_BYTES:
            raise _too_long(file)
        try:
            decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            # A plain UserError: documents have been handed out, so a folder cannot skip this file any more.
            raise UserError(str(_not_text(file, f"{error.reason} in line {number}", line))) from error
        if not decoded.strip():
            continue
        text = _json_text(f"{file.name}:{number}", decoded, text_field)
        if text.strip():
            yield f"{file.name}:{number}", text


def _json_text(where: str, line: str, text_field: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(
            f"{where} is not valid JSON ({reason}); JSON Lines holds one object a line, "
            f'such as {{"{text_field}": "..."}}'
        ) from error
    if not isinstance(record, dict):
        raise UserError(
            f"{where} holds {type(record).__name__}, not an object; JSON Lines holds one object a line, "
            f'such as {{"{text_field}": "..."}}'
        )
    if text_field not in record:
        raise UserError(
            f"{where} has no key {text_field!r}; set data.text_field.{nearest(text_field, record)}"
        )
    text = record[text_field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"{where}: key {text_field!r} holds {type(text).__name__}, not text; "
            "set data.text_field to a key that holds strings"
        )
    return clean_text(text)


def _parquet(file: InputFile, raw: IO[bytes], text_field: str) -> Iterator[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        if file.compression:  # parquet is read from its end: unpack it beside
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            stream = _decompressed(file, raw)
            while block := stream.read(_BLOCK):
                unpacked.write(block)
            unpacked.seek(0)
            raw = cast(IO[bytes], unpacked)
        try:
            table = pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True)
            schema = table.schema_arrow
            if text_field not in schema.names:
                raise UserError(
                    f"{file.name} has no column {text_field!r}; set data.text_field."
                    f"{nearest(text_field, schema.names)}"
                )
            kind = schema.field(text_field).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(
                    f"{file.name}: column {text_field!r} holds {kind}, not text; "
                    "set data.text_field to a column of strings"
                )
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text and text.strip():
                        yield f"{file.name}[{row - 1}]", clean_text(text)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file.name} is a damaged parquet file ({reason}); copy it again") from error
