"""Files as documents and as records: JSON Lines, JSON, CSV, TSV and parquet; every other file is plain text.

A format is one entry of :data:`FORMATS`. Whatever reads text (training, calibration, evaluation, tasks) reads it here.
"""

import contextlib
import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from layerroute.data.sources import readers
from layerroute.data.sources.base import Document, clean_text
from layerroute.data.sources.readers import (
    InputFile,
    NoTextError,
    decompressed,
    not_text,
    opened,
    text_parts,
    too_long,
)
from layerroute.errors import UserError, nearest, one_line, require

Record = tuple[str, Mapping[str, Any]]
"""Where it stands (``file.jsonl:3``), and its values by name."""

_BLOCK = 1 << 20


Reader = Callable[[InputFile, io.BufferedReader, str | None], Iterator[Record]]


@dataclass(frozen=True)
class RecordFormat:
    """A way to keep records in a file.

    Attributes:
        endings: of names.
        read: yields the records of ``(file, decompressed bytes, field)``; ``field`` is the one that is wanted, None for
            all.
    """

    endings: tuple[str, ...]
    read: Reader


def format_name(file: InputFile) -> str:
    """Of :data:`FORMATS`, or ``text``."""
    return next((name for name, one in FORMATS.items() if file.ending in one.endings), "text")


def holds_records(file: InputFile) -> bool:
    """Whether its name says that it holds records, and not plain text."""
    return format_name(file) in FORMATS


def read_documents(file: InputFile, *, text_field: str, separator: str | None) -> Iterator[Document]:
    """Yield the documents of one file; ``position`` is the share of its bytes read so far.

    Raises:
        NoTextError: empty or blank file, a text file that is not UTF-8 text, JSON that holds no list of objects, or a
            table without the column ``text_field``.
        UserError: missing, unreadable, damaged or truncated file; records without ``text_field``, or with something
            else than text in it.
    """
    found = False
    with opened(file) as raw:
        size = file.path.stat().st_size
        try:
            for name, text in _texts(file, decompressed(file, raw), text_field, separator):
                found = True
                yield Document(name, text, min(1.0, raw.tell() / size))
        except NoTextError as error:
            if not found:
                raise
            # Documents have been handed out, so a folder cannot skip this file any more.
            raise UserError(str(error)) from error
    if not found:
        raise NoTextError(f"{file.name} holds no text (only blanks or empty records); give a file that does")


def read_records(file: InputFile) -> Iterator[Record]:
    """Yield all records of a file in one of :data:`FORMATS`.

    Raises:
        UserError: as ``read_documents``.
    """
    with opened(file) as raw:
        yield from FORMATS[format_name(file)].read(file, decompressed(file, raw), None)


def _texts(
    file: InputFile, stream: io.BufferedReader, text_field: str, separator: str | None
) -> Iterator[tuple[str, str]]:
    if holds_records(file):
        for where, record in FORMATS[format_name(file)].read(file, stream, text_field):
            text = _text_of(where, record, text_field)
            if text.strip():
                yield where, text
        return
    parts = text_parts(file, stream, separator)
    begun = list(islice(parts, 2))
    for index, part in enumerate(chain(begun, parts)):
        if part.strip():
            yield (file.name if len(begun) == 1 else f"{file.name}#{index}"), part


def _text_of(where: str, record: Mapping[str, Any], field: str) -> str:
    if field not in record:
        raise UserError(f"{where} has no key {field!r}; {_SET}.{nearest(field, record)}")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(
            f"{where}: key {field!r} holds {type(text).__name__}, not text; {_SET} to a key that holds strings"
        )
    return clean_text(text)


_SET = "set data.text_field (--text-field)"


def _json_lines(file: InputFile, stream: io.BufferedReader, field: str | None) -> Iterator[Record]:
    number = 0
    while line := stream.readline(readers.MAXIMUM_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > readers.MAXIMUM_DOCUMENT_BYTES:
            raise too_long(file)
        try:
            decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            # A plain UserError: documents have been handed out, so a folder cannot skip this file any more.
            raise UserError(str(not_text(file, f"{error.reason} in line {number}", line))) from error
        if decoded.strip():
            yield f"{file.name}:{number}", _json_object(f"{file.name}:{number}", decoded, field)


def _json_object(where: str, line: str, field: str | None) -> Mapping[str, Any]:
    such = f'JSON Lines holds one object a line, such as {{"{field or "text"}": "..."}}'
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"{where} is not valid JSON ({reason}); {such}") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} holds {type(record).__name__}, not an object; {such}")
    return record


def _json(file: InputFile, stream: io.BufferedReader, field: str | None) -> Iterator[Record]:
    (text,) = text_parts(file, stream)
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines under another name, as many datasets have it
            for number, line in enumerate(text.split("\n"), start=1):
                if line.strip():
                    where = f"{file.name}:{number}"
                    yield where, _json_object(where, line, field)
            return
        if not text.strip():
            return
        raise UserError(f"{file.name} is not valid JSON ({error.msg}, line {error.lineno})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name} is not valid JSON ({type(error).__name__})") from error
    for index, record in enumerate(_rows(file, content, field)):
        if not isinstance(record, dict):
            raise UserError(f"{file.name}[{index}] holds {type(record).__name__}, not an object")
        yield f"{file.name}[{index}]", record


def _rows(file: InputFile, content: Any, field: str | None) -> list[Any]:
    """The list of objects in a JSON file: the whole, the one list in an object, or the object itself or its columns."""
    told = "a JSON file with text holds a list of objects, or an object with such a list"
    if isinstance(content, list):
        if content and not isinstance(content[0], dict):
            raise NoTextError(f"{file.name} holds a list of {type(content[0]).__name__}; {told}")
        return content
    if not isinstance(content, dict):
        raise NoTextError(f"{file.name} holds {type(content).__name__}; {told}")
    if field is not None and field in content:
        texts = content[field] if isinstance(content[field], list) else [content[field]]
        return [{field: text} for text in texts]
    lists = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    fitting = {key: value for key, value in lists.items() if field is None or field in value[0]}
    if len(fitting) > 1:
        raise UserError(
            f"{file.name} holds several lists of objects ({', '.join(fitting)}); keep one of them a file"
        )
    if fitting or lists:
        return next(iter((fitting or lists).values()))
    hint = "" if field is None else nearest(field, content)
    raise NoTextError(f"{file.name} holds an object without a list of objects; {told}.{hint}")


def _table(delimiter: str) -> Reader:
    """A reader of tables as text whose first line names the columns (RFC 4180)."""

    def read(file: InputFile, stream: io.BufferedReader, field: str | None) -> Iterator[Record]:
        csv.field_size_limit(readers.MAXIMUM_DOCUMENT_BYTES)
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
            if field is not None and field not in names:
                raise NoTextError(f"{file.name} has no column {field!r}; {_SET}.{nearest(field, names)}")
            if len(set(names)) < len(names):
                raise UserError(f"{file.name} names a column twice: {', '.join(names)}")
            for row in rows:
                where = f"{file.name}:{rows.line_num}"
                if row and len(row) != len(names):
                    raise UserError(
                        f"{where} has {len(row)} fields, and its first line names {len(names)} columns"
                    )
                if row:
                    yield where, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{file.name}:{rows.line_num} is no {file.ending} line ({error}); mend it"
            ) from error
        except UnicodeDecodeError as error:
            told = not_text(file, f"{error.reason} after line {rows.line_num}", error.object[:64])
            raise NoTextError(str(told)) if rows.line_num == 0 else UserError(str(told)) from error
        finally:
            lines.detach()

    return read


def _parquet(file: InputFile, stream: io.BufferedReader, field: str | None) -> Iterator[Record]:
    require("pyarrow", extra="data")
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        unpacked = None
        if file.compression:  # parquet is read from its end: unpack it beside
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, unpacked, _BLOCK)
            unpacked.seek(0)
        try:
            table = pyarrow.parquet.ParquetFile(unpacked or stream, page_checksum_verification=True)
            schema = table.schema_arrow
            if field is not None:
                if field not in schema.names:
                    raise NoTextError(
                        f"{file.name} has no column {field!r}; {_SET}.{nearest(field, schema.names)}"
                    )
                if not _is_text(kind := schema.field(field).type):
                    raise UserError(
                        f"{file.name}: column {field!r} holds {kind}, not text; {_SET} to a column of strings"
                    )
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=None if field is None else [field]):
                for record in batch.to_pylist():
                    yield f"{file.name}[{row}]", record
                    row += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file.name} is a damaged parquet file ({one_line(error, 200)}); copy it again"
            ) from error


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):  # as pandas writes its categories
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


FORMATS: dict[str, RecordFormat] = {
    "jsonl": RecordFormat((".jsonl", ".ndjson", ".jsonlines"), _json_lines),
    "json": RecordFormat((".json", ".geojson", ".ipynb"), _json),
    "csv": RecordFormat((".csv",), _table(",")),
    "tsv": RecordFormat((".tsv", ".tab"), _table("\t")),
    "parquet": RecordFormat((".parquet", ".pq"), _parquet),
}
