"""The small interface that every source of documents follows."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from layerroute.errors import UserError


class Document(NamedTuple):
    """One document.

    Attributes:
        name: tells it apart in messages (a file's name, with a line or row where the file holds many).
        text: never empty, always encodable as UTF-8.
        position: share of the source read when this document came, in [0, 1]; None where nobody knows.
    """

    name: str
    text: str
    position: float | None = None


@runtime_checkable
class Source(Protocol):
    """Yields the same documents in the same order as long as :meth:`fingerprint` is the same."""

    def describe(self) -> str:
        """Return one line for records and messages, without folders of this machine."""
        ...

    def fingerprint(self) -> str:
        """Return a hexadecimal digest of what :meth:`documents` would read, without parsing it."""
        ...

    def documents(self) -> Iterator[Document]:
        """Read all documents, lazily. Raises :class:`UserError` on input that cannot be used."""
        ...


class NamedTexts(ABC):
    """Texts of this machine, a document each.

    Args:
        description: the line for records.
    """

    mark: ClassVar[bytes]
    """Begins the fingerprint."""
    items: Sequence[tuple[str, Any]]
    """Name and content of each, in the order of reading."""

    def __init__(self, description: str) -> None:
        self._description = description

    @abstractmethod
    def read(self, content: Any) -> bytes:
        """The bytes of a content."""

    def text(self, data: bytes) -> str:
        """The text of some bytes; an empty one is left out."""
        return data.decode()

    def describe(self) -> str:
        return self._description

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.mark)
        for name, content in self.items:
            data = self.read(content)
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        for number, (name, content) in enumerate(self.items, start=1):
            if text := self.text(self.read(content)):
                yield Document(name, text, number / len(self.items))


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises :class:`UserError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; make it readable") from error


def clean_text(text: str) -> str:
    r"""Return ``text`` with unpaired surrogates replaced by U+FFFD, so that it has a UTF-8 form.

    JSON can spell such surrogates (``"\ud800"``) and real corpora hold them; no tokenizer accepts them.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def listing(names: list[str], shown: int = 3) -> str:
    """Join ``names`` for a message: all of them, or the first ``shown`` and a count of the others."""
    if len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"
