"""Tokens that repeat what their sequence held long before: the natural witness of recall."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.errors import expect

Marks = NDArray[np.bool_]


@dataclass(kw_only=True, frozen=True)
class CopiesConfig:
    """Which tokens of a text count as copied: the ``data.copies`` section of a recipe.

    Attributes:
        length: tokens of a stretch that the sequence held before, word for word; its last one is the copied token.
            Shorter ones repeat by chance, longer ones leave out short names.
        beyond: the stretch came last more than so many tokens before. A window of so many tokens does not see it.
    """

    length: int = 4
    beyond: int = 128

    def __post_init__(self) -> None:
        expect(self.length >= 2, f"data.copies.length is {self.length}; a stretch has 2 tokens or more")
        expect(self.beyond >= 1, f"data.copies.beyond is {self.beyond}; it must be 1 or more")


def copied_tokens(
    ids: NDArray[np.integer[Any]],
    rule: CopiesConfig,
    *,
    blank: Iterable[int] = (),
    documents: NDArray[np.integer[Any]] | None = None,
) -> Marks:
    """Mark the copied tokens of sequences (B, T).

    A token is copied if the ``rule.length`` tokens that end with it stand earlier in the same sequence too, and stood
    there last more than ``rule.beyond`` tokens before. What repeats by itself is left out: a blank token is never
    copied, and a stretch must hold two different tokens that are not blank.

    Args:
        ids: (B, T) token ids, 0 or more.
        blank: ids of white space, padding and special tokens.
        documents: (B, T) which document each token is of, rising along a row: a copy is then of its own document.
            None: of its sequence.

    Returns:
        (B, T), True where a token is copied.
    """
    ids = ids.astype(np.int64)
    marks: Marks = np.zeros(ids.shape, dtype=np.bool_)
    rows, starts = len(ids), ids.shape[1] - rule.length + 1
    if not rows or starts < 1:
        return marks
    # Equal stretches of one sequence get one number, token by token, so that numbers stay small.
    number = np.repeat(np.arange(rows), starts)
    parts = [ids[:, at : at + starts] for at in range(rule.length)]
    whole: Marks = np.ones((rows, starts), dtype=np.bool_)
    if documents is not None:
        first, last = documents[:, :starts], documents[:, rule.length - 1 :]
        whole, parts = first == last, [first, *parts]
    for part in parts:
        pairs = number * (int(part.max()) + 1) + part.ravel()
        number = np.unique(pairs, return_inverse=True)[1]
    order = np.argsort(number, kind="stable")
    again = (np.diff(number[order]) == 0) & (np.diff(order) > rule.beyond)
    far: Marks = np.zeros(rows * starts, dtype=np.bool_)
    far[order[1:]] = again
    marks[:, rule.length - 1 :] = far.reshape(rows, starts) & whole & _tells(ids, rule.length, blank)
    return marks


def _tells(ids: NDArray[np.integer[Any]], length: int, blank: Iterable[int]) -> Marks:
    """By stretch, whether its last token is not blank and it holds two different tokens that are not."""
    empty = np.isin(ids, list(blank))
    low, high = (
        np.lib.stride_tricks.sliding_window_view(np.where(empty, filler, ids), length, axis=1)
        for filler in (np.iinfo(np.int64).max, -1)
    )
    told: Marks = (low.min(axis=2) < high.max(axis=2)) & ~empty[:, length - 1 :]
    return told
