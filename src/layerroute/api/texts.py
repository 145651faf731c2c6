"""Text in the forms in which Python code has it: paths, kinds of text, records in memory."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

from layerroute.data.kinds import UNNAMED, KindConfig, parse_kinds
from layerroute.data.sources.base import Document, Source, clean_text
from layerroute.data.texts import Texts
from layerroute.errors import UserError

Data = None | str | Path | Texts | Mapping[str, Any] | Iterable[Any]
"""See ``texts_of``."""


class Records:
    """A source of records in memory: mappings with a text, as rows of a data set of ``datasets`` are."""

    def __init__(self, records: Iterable[Mapping[str, Any]], text_field: str) -> None:
        if not isinstance(records, Sized):
            raise UserError(
                "records need a length; take some of them first: list(itertools.islice(data, 1000))"
            )
        self._records, self._field = records, text_field

    def describe(self) -> str:
        """How many they are."""
        return f"{len(self._records):,} records in memory"

    def fingerprint(self) -> str:
        """SHA-256 of the texts."""
        digest = hashlib.sha256()
        for document in self.documents():
            digest.update(document.text.encode() + b"\0")
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        """The texts that are not empty; raises UserError for a record without one."""
        for index, record in enumerate(self._records):
            text = record.get(self._field) if isinstance(record, Mapping) else None
            if not isinstance(text, str):
                raise UserError(
                    f"record {index} has no text under {self._field!r}; name its field with text_field"
                )
            if text.strip():
                yield Document(f"record {index}", clean_text(text))


def texts_of(data: Data, *, text_field: str = "text") -> Texts:
    """Documents of one or several kinds.

    Args:
        data: None, for text that every machine has; a path, folder or glob; several, also with names
            (``"prose=a.jsonl"``); records; or a mapping of kinds of text to any of these, or to ``KindConfig``.
        text_field: key or column of the text in records.

    Raises:
        UserError: files that are not there, a kind without any text, or data of another form.
    """
    if isinstance(data, Texts):
        return data
    if data is None:
        return Texts(None)
    if isinstance(data, Mapping):
        return Texts({str(name): _kind(own, text_field, str(name)) for name, own in data.items()})
    found = _kind(data, text_field, UNNAMED)
    if isinstance(found, KindConfig):
        return Texts(parse_kinds(found.paths, "data", text_field=text_field))
    return Texts({UNNAMED: found})


def _kind(data: Any, text_field: str, name: str) -> KindConfig | Source:
    if isinstance(data, KindConfig):
        return data
    if isinstance(data, str | Path):
        return KindConfig(paths=[str(data)], text_field=text_field)
    if not isinstance(data, Iterable):
        raise UserError(f"{name}: text is given as paths or as records, not as {type(data).__name__}")
    if isinstance(data, list | tuple) and all(isinstance(one, str | Path) for one in data):
        return KindConfig(paths=[str(one) for one in data], text_field=text_field)
    return Records(data, text_field)
