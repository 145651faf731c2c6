"""Documents of one or several kinds, drawn by who calibrates, searches or measures."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from layerroute.data.kinds import UNNAMED, KindConfig, default_kinds
from layerroute.data.sources import Source
from layerroute.data.sources.mixture import kind_sources, without_text
from layerroute.errors import UserError


class Texts:
    """Documents of one or several kinds, each handed out once: what is calibrated on is never measured on.

    Args:
        kinds: by name, as :func:`parse_kinds` gives them, or a source; None: :func:`default_kinds`.

    Attributes:
        kinds: what was asked for, of files.
        documents: by kind, an iterator over its texts.
        distinct: the same iterators without texts that came before in any kind: what draws read, so that a copy is not
            measured on either, and documents are units of intervals.
        seen: digests of what `distinct` does not hand out again. Two objects that share it hand nothing out twice
            between them.
        taken: digests of what `distinct` of this object has handed out.
        shares: by kind, their sum is 1.
        sources: by kind.
        name: of all of it, for records.

    Raises:
        UserError: files that are not there, or a kind without any text. Only the first document of each is read.
    """

    def __init__(self, kinds: Mapping[str, KindConfig | Source] | None = None) -> None:
        kinds = default_kinds() if kinds is None else kinds
        if not kinds:
            raise UserError("there is no kind of text; give one with --data NAME=FILE")
        files = {name: kind for name, kind in kinds.items() if isinstance(kind, KindConfig)}
        self.kinds = files
        parts = {name: kind.share if isinstance(kind, KindConfig) else 1.0 for name, kind in kinds.items()}
        self.shares = {name: part / math.fsum(parts.values()) for name, part in parts.items()}
        found = kind_sources(files)
        self.sources = {
            name: kind if isinstance(kind, Source) else found[name] for name, kind in kinds.items()
        }
        self.documents = {name: _opened(name, source) for name, source in self.sources.items()}
        self.seen: set[bytes] = set()
        self.taken: set[bytes] = set()
        self.distinct = {name: self._once(own) for name, own in self.documents.items()}
        told = {name: source.describe() for name, source in self.sources.items()}
        self.name = (
            next(iter(told.values()))
            if list(told) == [UNNAMED]
            else "; ".join(f"{name}: {what}" for name, what in told.items())
        )

    def _once(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
            if digest not in self.seen:
                self.seen.add(digest)
                self.taken.add(digest)
                yield text

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each kind's content."""
        return {name: source.fingerprint() for name, source in self.sources.items()}

    @property
    def fingerprint(self) -> str:
        """Of all of it: the source's own where there is one kind."""
        found = self.fingerprints
        if len(found) == 1:
            return next(iter(found.values()))
        return hashlib.sha256(repr([sorted(self.shares.items()), sorted(found.items())]).encode()).hexdigest()

    def shared_with(self, other: "Texts") -> str | None:
        """A text that both hold, in words; None: none that can be told by its file or by all of a kind's content."""
        return self.known_as(mark for mark, _ in _marks(other.sources))

    def known_as(self, marks: Iterable[str]) -> str | None:
        """The text that has one of these marks (``marks_of``), in words; None: none has."""
        theirs = set(marks)
        return next((name for mark, name in _marks(self.sources) if mark in theirs), None)

    def describe(self) -> dict[str, dict[str, object]]:
        """Share, source and fingerprint of each kind, for records."""
        return {
            name: {
                "share": self.shares[name],
                "source": source.describe(),
                "fingerprint": source.fingerprint(),
            }
            for name, source in self.sources.items()
        }


def marks_of(source: Source) -> set[str]:
    """What tells the texts of a source from others: fingerprints of their kinds, and where their files are."""
    return {mark for mark, _ in _marks(getattr(source, "sources", {"": source}))}


def _marks(sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """The marks of kinds of text, and what each is called."""
    for name, source in sources.items():
        yield source.fingerprint(), f"the kind {name!r}"
        yield from ((path, Path(path).name) for path in getattr(source, "real_paths", ()))


def _opened(name: str, source: Source) -> Iterator[str]:
    """The texts of a source whose first one is read now, so that one without text is told at once."""
    documents = source.documents()
    try:
        first = next(documents, None)
    except UserError as error:
        raise UserError(str(error) if name == UNNAMED else f"kind {name!r}: {error}") from error
    if first is None:
        raise UserError(without_text(name, source))
    return (document.text for document in chain([first], documents))
