"""Windows of tokens to calibrate on: one from each document, so that documents are the units of every interval."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError

UNNAMED = "text"
"""The kind of windows of text that has no name."""

_CHARACTERS_A_TOKEN = 12


class _RanOut(UserError):
    """The documents of a kind do not suffice; another error is one of reading them."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Token ids (N, T), window i from a document of its own.

    Attributes:
        ids: the tokens.
        kinds: the kind of text of each window. Default: all ``text``.
        fingerprint: of the ids, hexadecimal.
    """

    ids: Int[Tensor, "N T"]
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = self.kinds or (UNNAMED,) * len(self.ids)
        if len(kinds) != len(self.ids):
            raise ValueError(f"{len(self.ids)} windows need as many kinds, got {len(kinds)}")
        object.__setattr__(self, "kinds", kinds)

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.ids.numel()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids."""
        return hashlib.sha256(self.ids.contiguous().to(torch.int64).cpu().numpy().tobytes()).hexdigest()

    def first(self, tokens: int) -> "Windows":
        """So many of the first windows as make up ``tokens`` tokens, one at least."""
        count = max(1, tokens // self.ids.shape[1])
        return Windows(ids=self.ids[:count], kinds=self.kinds[:count])


def draw_windows(
    texts: Iterator[str] | Iterable[str] | Mapping[str, Iterator[str]],
    tokenizer: Any,
    *,
    tokens: int,
    length: int,
    seed: int,
    shares: Mapping[str, float] | None = None,
    least: int | None = None,
) -> Windows:
    """Take one window from each document that is long enough, at a place drawn by ``seed``, until there are enough.

    Of an iterator only as many documents are taken as are needed, so that a second draw goes on after the first.
    Several kinds come in turn: the first n windows hold each kind's share to about one window, for every n.

    Args:
        texts: documents; or iterators over documents by kind.
        tokenizer: of the model.
        tokens: wanted, rounded up to whole windows.
        length: T.
        shares: of the kinds, in any unit. Default: equal.
        least: tokens that suffice where the documents of a kind run out. Default: all that are wanted.

    Raises:
        UserError: if the documents of a kind do not suffice, or cannot be read.
    """
    streams = (
        {kind: iter(own) for kind, own in texts.items()}
        if isinstance(texts, Mapping)
        else {UNNAMED: iter(texts)}
    )
    wanted = -(-tokens // length)
    kinds = list(streams)
    order = _order(kinds, shares or dict.fromkeys(kinds, 1.0), wanted)
    encoder = DocumentEncoder.of(tokenizer)
    draws = {
        kind: _windows(kind, stream, encoder, order.count(kind), length, torch.Generator().manual_seed(seed))
        for kind, stream in streams.items()
    }
    found: list[list[int]] = []
    for kind in order:
        try:
            found.append(next(draws[kind]))
        except _RanOut:
            if least is None or len(found) * length < least:
                raise
            break
    return Windows(ids=torch.tensor(found, dtype=torch.long), kinds=tuple(order[: len(found)]))


def mix(pools: Mapping[str, Windows], *, tokens: int, length: int, shares: Mapping[str, float]) -> Windows:
    """Windows of several kinds in turn, each kind's first ones from its own pool.

    Raises:
        ValueError: if a pool is too small; `needed` says how many windows each must have.
    """
    order = _order(list(pools), shares, -(-tokens // length))
    rows = {kind: iter(pool.ids) for kind, pool in pools.items()}
    short = [kind for kind, pool in pools.items() if len(pool.ids) < order.count(kind)]
    if short:
        raise ValueError(f"the pools of {', '.join(short)} are too small for {tokens} tokens")
    return Windows(ids=torch.stack([next(rows[kind]) for kind in order]), kinds=tuple(order))


def needed(kinds: Sequence[str], *, tokens: int, length: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many windows of each kind `mix` takes."""
    order = _order(kinds, shares, -(-tokens // length))
    return {kind: order.count(kind) for kind in kinds}


def _order(kinds: Sequence[str], shares: Mapping[str, float], count: int) -> list[str]:
    turns = in_turn([shares[kind] for kind in kinds])
    return [kinds[next(turns)] for _ in range(count)]


def in_turn(shares: Sequence[float]) -> Iterator[int]:
    """Indices of kinds, without end, so that the first n of them hold each share to about one, for every n."""
    counts = [0] * len(shares)
    total = math.fsum(shares)
    for taken in itertools.count(1):
        index = max(range(len(shares)), key=lambda i: shares[i] / total * taken - counts[i])
        counts[index] += 1
        yield index


def _windows(
    kind: str,
    texts: Iterator[str],
    encoder: DocumentEncoder,
    wanted: int,
    length: int,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    seen = found = 0
    for text in texts:
        seen += 1
        # Only a stretch of a long document is tokenized: a novel has a million characters.
        span = length * _CHARACTERS_A_TOKEN
        place = float(torch.rand((), generator=generator))
        start = int(place * max(0, len(text) - span))
        if start:
            start = text.find(" ", start) + 1
        part = text[start : start + span]
        ids = encoder.document(part) if start + span >= len(text) else encoder.opening(part)
        if len(ids) < length:
            continue
        found += 1
        yield ids[:length]
        if found == wanted:
            return
    which = "the text" if kind == UNNAMED else f"the kind {kind!r}"
    raise _RanOut(
        f"{which} has {found} documents of at least {length} tokens among {seen} left, and {wanted} are "
        f"needed (copies do not count); give more text, or ask for fewer or shorter windows"
    )
