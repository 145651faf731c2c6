"""Several kinds of text: the source of each, and all of them in turn as one source."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from layerroute.data.kinds import KindConfig, check_kinds
from layerroute.data.sources.base import Document, Source
from layerroute.data.sources.files import FilesSource
from layerroute.data.sources.hub import HubSource
from layerroute.data.sources.python_code import standard_library
from layerroute.data.sources.python_text import library_code, library_documentation, reference_texts
from layerroute.errors import UserError

EMBEDDED: dict[str, Callable[[], Source]] = {
    "python-stdlib": standard_library,
    "python-code": library_code,
    "python-docs": library_documentation,
    "python-reference": reference_texts,
}
"""Words that stand where paths do, for text that every machine with this package has."""


def kind_sources(kinds: Mapping[str, KindConfig]) -> dict[str, Source]:
    """The source of each kind; its files are looked up now and read later.

    Raises:
        UserError: files that are not there, or a file that belongs to two kinds.
    """
    check_kinds(kinds)
    sources: dict[str, Source] = {}
    owners: dict[str, str] = {}
    for name, kind in kinds.items():
        source: Source
        if kind.dataset is not None:
            source = HubSource(kind)
        elif len(kind.paths) == 1 and kind.where in EMBEDDED and not os.path.exists(kind.where):
            source = EMBEDDED[kind.where]()
        else:
            source = FilesSource(kind.paths, text_field=kind.text_field, separator=None)
        for path in getattr(source, "real_paths", ()) or [source.describe()]:
            if owners.setdefault(path, name) != name:
                raise UserError(
                    f"the kinds {owners[path]!r} and {name!r} share a text ({Path(path).name}); one text has one kind"
                )
        sources[name] = source
    return sources


def without_text(name: str, source: Source) -> str:
    """What to say of a kind that has no document at all."""
    return f"the kind {name!r} holds no text ({source.describe()}); give files that do"


class Mixture:
    """A source of several kinds, whose documents come in turn so that each kind has its share of the characters.

    It ends where the first kind runs out: what follows would no longer be the mixture that was asked for. A kind
    without any text is refused.
    """

    def __init__(self, kinds: Mapping[str, KindConfig]) -> None:
        self._kinds = dict(kinds)
        self.sources = kind_sources(kinds)

    def describe(self) -> str:
        return "; ".join(
            f"{name} ({self._kinds[name].share:g}): {source.describe()}"
            for name, source in self.sources.items()
        )

    def fingerprint(self) -> str:
        parts = [(n, self._kinds[n].share, source.fingerprint()) for n, source in self.sources.items()]
        return hashlib.sha256(f"mixture {parts}".encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        streams = {name: source.documents() for name, source in self.sources.items()}
        read = dict.fromkeys(streams, 0.0)
        place: dict[str, float] = dict.fromkeys(streams, 0.0)
        while True:
            name = min(read, key=lambda kind: read[kind])
            document = next(streams[name], None)
            if document is None and not read[name]:
                raise UserError(without_text(name, self.sources[name]))
            if document is None:
                return
            read[name] += len(document.text) / self._kinds[name].share
            place[name] = document.position or 0.0
            yield Document(f"{name}:{document.name}", document.text, max(place.values()))
