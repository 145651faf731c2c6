"""The small interface that every source of documents follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable


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
