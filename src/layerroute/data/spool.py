"""The one reading pass over a source, and its split: documents are kept aside, parsed or downloaded once.

Splitting, training the tokenizer and tokenizing each need the documents again, and a source may be slow (xz), or gone
(a stream). Memory holds 24 bytes a document, and the text only while it is small.
"""

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerroute.data.progress import Advance
from layerroute.data.sources.base import Source
from layerroute.errors import UserError

_IN_MEMORY_BYTES = 64 << 20


class Spool:
    """Texts in their order, with a keyed 64-bit digest of each.

    Args:
        folder: where the text goes once it is larger than 64 MiB. The file has no name and dies with the process.
        seed: keys the digests; see :func:`split_by_digest`.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115
        self._key = str(seed).encode()
        self._lengths = array("Q")
        self._digests = array("Q")
        self._content = hashlib.sha256()
        self.characters = 0

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lengths)

    def append(self, text: str) -> None:
        data = text.encode()
        self._file.write(data)
        self._lengths.append(len(data))
        self._digests.append(keyed_digest(data, self._key))
        self._content.update(len(data).to_bytes(8, "big"))
        self._content.update(data)
        self.characters += len(text)

    @property
    def digests(self) -> NDArray[np.uint64]:
        """Digest of each document, shape (documents,): equal for equal texts."""
        return np.array(self._digests, dtype=np.uint64)

    def content_sha256(self) -> str:
        """Return the digest of all texts and of where they part."""
        return self._content.hexdigest()

    def texts(self, selected: NDArray[np.bool_], advance: Advance) -> Iterator[str]:
        """Yield the texts of the selected documents; ``selected`` has shape (documents,)."""
        total = max(1, sum(self._lengths))
        done = 0
        for length, wanted in zip(self._lengths, selected, strict=True):
            if wanted:
                self._file.seek(done)
                yield self._file.read(length).decode()
            done += length
            advance(done / total)


def keyed_digest(data: bytes, key: bytes) -> int:
    """64 bits that say on which side of a split a text is: see :func:`split_by_digest`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, key=key).digest(), "big")


def split_by_digest(digests: NDArray[np.uint64], share: float, described: str) -> NDArray[np.bool_]:
    """Return which documents validate, shape (documents,), from a keyed digest of each document's text.

    The digest is of the text and not of the name, so that a text which stands in a source twice, under two names,
    can never be trained on and validated with. A document's side depends on itself, the seed and ``share`` alone:
    adding documents moves none. Only where a side would stay empty, the nearest text crosses over.

    Args:
        digests: uniform over 64 bits, keyed with the split's seed.

    Raises:
        UserError: fewer than two different documents.
    """
    distinct = np.unique(digests)
    if len(distinct) < 2:
        raise UserError(
            f"{described} holds {len(digests)} document{'s' * (len(digests) != 1)}"
            f"{' of the same text' * (len(digests) > 1)}, and a split by document needs two different ones: set "
            "data.validation_paths, or give more files, or part the text with data.document_separator"
        )
    bound = min(max(int(share * 2.0**64), int(distinct[0]) + 1), int(distinct[-1]))
    return digests < np.uint64(bound)


def held_out(texts: Iterable[str], *, share: float, seed: int) -> Iterator[str]:
    """Those of ``texts`` that a split of this share and seed never trains on."""
    key = str(seed).encode()
    for text in texts:
        if keyed_digest(text.encode(), key) < int(share * 2.0**64):
            yield text


def fill(
    spool: Spool,
    source: Source,
    advance: Advance,
    *,
    max_documents: int | None = None,
    max_characters: int | None = None,
) -> None:
    """Read ``source`` into ``spool`` up to the limits; the document that crosses ``max_characters`` is cut there."""
    for document in source.documents():
        text = document.text
        if max_characters is not None:
            text = text[: max_characters - spool.characters]
        spool.append(text)
        shares = [document.position]
        if max_documents is not None:
            shares.append(len(spool) / max_documents)
        if max_characters is not None:
            shares.append(spool.characters / max_characters)
        advance(max((share for share in shares if share is not None), default=None))
        if len(spool) == max_documents or spool.characters == max_characters:
            return
