"""Where text becomes token windows: the one rule of what begins and what ends a document. No torch here.

A document is [begin] + its tokens + [end]. *begin* is what its tokenizer puts before a text by itself (BOS, for those
that ask for one; for most there is none). *end* is the end-of-text token of base models, or else the tokenizer's own
``eos_token``, which in chat models ends a turn; see :func:`layerroute.data.tokenizer.end_of_text`. Documents follow
each other, and the stream is cut into windows. A window that starts inside a document begins with *begin*, too, in the
place of its first token: no prediction is asked for there, and models that ask for a BOS go wrong without one.

Training, calibration, evaluation, domains, retention, inspection and generation all take their tokens from here.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layerroute.data.tokenizer import begin_of_text, encode_texts, end_of_text
from layerroute.errors import UserError


@dataclass(frozen=True)
class DocumentEncoder:
    """Turns text into tokens with a tokenizer of transformers.

    Attributes:
        begin: ids before each document and at the start of each window; most tokenizers have none.
        end: id after each document, None where the tokenizer has no such token.
    """

    tokenizer: Any
    begin: tuple[int, ...]
    end: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The encoder of a tokenizer of transformers, fast or not."""
        get_vocab = getattr(tokenizer, "get_vocab", None)
        known = get_vocab() if get_vocab is not None else {}
        name = end_of_text(known, getattr(tokenizer, "eos_token", None))
        # Asked with and without, by the calls that transformers itself answers `tokenizer(text)` with.
        begin = begin_of_text(
            tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
        )
        return cls(tokenizer, begin, None if name is None else known[name])

    def text(self, text: str) -> list[int]:
        """The tokens of the text alone. What spells a special token is text: a document cannot end itself."""
        if self._backend is not None:
            return [token for ids, _ in encode_texts(self._backend, [text]) for token in ids.tolist()]
        found: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return list(found)

    def opening(self, text: str) -> list[int]:
        """A text that may go on: begin + tokens."""
        return [*self.begin, *self.text(text)]

    def document(self, text: str) -> list[int]:
        """A whole document: begin + tokens + end."""
        return [*self.opening(text), *self._ends]

    def stream(self, texts: Iterable[str], enough: float = math.inf) -> NDArray[np.int64]:
        """Documents, one after the other: shape (tokens,). No more are read once there are ``enough`` tokens."""
        parts, tokens = [np.zeros(0, dtype=np.int64)], 0
        for ids in self._parts(texts):
            parts.append(ids)
            tokens += len(ids)
            if tokens >= enough:
                break
        return np.concatenate(parts)

    def windows(
        self, texts: Iterable[str], length: int, limit: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whole windows of documents (N, ``length``), ``limit`` at most, and what is left (fewer tokens).

        Nothing is left where the limit is reached.
        """
        stream = self.stream(texts, math.inf if limit is None else limit * length)
        whole = cut(stream, length, self.begin)[:limit]
        rest = stream[len(whole) * length :] if limit is None or len(whole) < limit else stream[:0]
        return whole, opened(rest.copy(), self.begin)

    def prompt(self, text: str) -> list[int]:
        """A prompt: begin + tokens, in which special tokens that are spelled out (a chat's) count as such.

        An empty prompt is the start of a document: begin, or else the end of the document before; ``unwritten``
        tells how many of the first ids are not of the text.

        Raises:
            UserError: text that has no UTF-8 form; an empty prompt where nothing begins or ends a document.
        """
        own = self.tokenizer(utf8(text), add_special_tokens=False)["input_ids"]
        ids = [*self.begin, *own] or list(self._ends)
        if not ids:
            raise UserError(
                "the prompt is empty, and the tokenizer has no token that begins or ends a text; give a prompt"
            )
        return ids

    def unwritten(self, text: str) -> int:
        """How many ids of ``prompt(text)`` come before the text's own."""
        return len(self.begin) or int(not text)

    def _parts(self, texts: Iterable[str]) -> Iterator[NDArray[np.int64]]:
        if self._backend is None:
            yield from (np.array(self.document(text), dtype=np.int64) for text in texts)
        else:
            encoded = encode_texts(self._backend, texts, before=self.begin, after=self._ends)
            yield from (ids.astype(np.int64) for ids, _ in encoded)

    @property
    def _backend(self) -> Any:
        """The tokenizer that training reads text with, too; None for a slow one."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @property
    def _ends(self) -> tuple[int, ...]:
        return () if self.end is None else (self.end,)


def utf8(text: str) -> str:
    """The text itself.

    Raises:
        UserError: it holds bytes or halves of characters that are no UTF-8; no tokenizer accepts them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not UTF-8 (at character {error.start + 1}); mend it") from None
    return text


def cut(stream: NDArray[Any], length: int, begin: Sequence[int] = ()) -> NDArray[np.int64]:
    """Whole windows (N, ``length``) of a stream, each with ``begin`` at its start; the rest is left out. A copy."""
    count = len(stream) // length
    return opened(stream[: count * length].reshape(count, length).astype(np.int64), begin)


def evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` indices, evenly spaced from the first on."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def opened(windows: NDArray[np.int64], begin: Sequence[int]) -> NDArray[np.int64]:
    """``windows`` (..., T) with ``begin`` in the place of their first tokens. Changes them."""
    first = list(begin)[: windows.shape[-1]]
    if first:
        windows[..., : len(first)] = first
    return windows
