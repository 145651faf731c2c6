"""Windows of tokens to calibrate on: one from each document, so that documents are the units of every interval."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError

_CHARACTERS_A_TOKEN = 12


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Token ids (N, T), window i from a document of its own.

    Attributes:
        ids: the tokens.
        fingerprint: of the ids, hexadecimal.
    """

    ids: Int[Tensor, "N T"]

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
        return Windows(ids=self.ids[: max(1, tokens // self.ids.shape[1])])


def draw_windows(
    texts: Iterator[str] | Iterable[str], tokenizer: Any, *, tokens: int, length: int, seed: int
) -> Windows:
    """Take one window from each document that is long enough, at a place drawn by ``seed``, until there are enough.

    Of an iterator only as many documents are taken as are needed, so that a second draw goes on after the first.

    Args:
        texts: documents.
        tokenizer: of the model.
        tokens: wanted, rounded up to whole windows.
        length: T.

    Raises:
        UserError: if the documents do not suffice.
    """
    wanted = -(-tokens // length)
    encoder = DocumentEncoder.of(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    seen = 0
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
        found.append(ids[:length])
        if len(found) == wanted:
            return Windows(ids=torch.tensor(found, dtype=torch.long))
    raise UserError(
        f"the text has {len(found)} documents of at least {length} tokens among {seen} left, and {wanted} are "
        f"needed for {tokens} tokens; give more text with --data, or ask for fewer or shorter windows"
    )
