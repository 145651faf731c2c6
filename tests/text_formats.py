"""The same documents in every format that is registered: what walks over formats write their files with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from layerroute.data.sources.readers import InputFile
from layerroute.data.sources.records import FORMATS, format_name


def _lines(texts: Sequence[str]) -> bytes:
    return "\n".join(json.dumps({"text": text, "other": 1}) for text in texts).encode()


def _json(texts: Sequence[str]) -> bytes:
    return json.dumps({"about": "x", "data": [{"url": "http://x", "text": text} for text in texts]}).encode()


def _table(delimiter: str) -> Callable[[Sequence[str]], bytes]:
    def write(texts: Sequence[str]) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
        return out.getvalue().encode()

    return write


def _parquet(texts: Sequence[str]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": list(texts)}), sink)
    return bytes(sink.getvalue().to_pybytes())


WRITERS: dict[str, Callable[[Sequence[str]], bytes]] = {
    "jsonl": _lines,
    "json": _json,
    "csv": _table(","),
    "tsv": _table("\t"),
    "parquet": _parquet,
}
# A format that is registered and has no writer here would be left out of the walks.
assert set(WRITERS) == set(FORMATS)


def as_records(path: Path, texts: Sequence[str]) -> bytes:
    """The bytes, before compression, of a file of that name."""
    return WRITERS[format_name(InputFile.of(path, path.name))](texts)
