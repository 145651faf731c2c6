"""A token cache as windows of equal length.

Shapes: B windows, T tokens of a window.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from layerroute.data.windows import opened
from layerroute.errors import UserError


class TokenSequence:
    """Packed tokens of one split, cut into windows that do not overlap; the rest at the end is left out.

    Documents follow each other with one end-of-text token after each, so a window may hold parts of several: see
    :meth:`document_ids`. The array may be memory-mapped; what is handed out is always a copy.

    Args:
        tokens: shape (tokens,), any unsigned integer type.
        end_of_text: id of the token that ends each document.
        begin: ids at the start of each window, in the place of its first tokens; see :mod:`layerroute.data.windows`.
        sequence_length: tokens of a window, T.
        name: the split, for messages.
    """

    def __init__(
        self,
        tokens: NDArray[np.unsignedinteger],
        *,
        end_of_text: int,
        sequence_length: int,
        begin: Sequence[int] = (),
        name: str = "training",
    ) -> None:
        if tokens.ndim != 1:
            raise ValueError(f"tokens must have one dimension, got shape {tokens.shape}")
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be 1 or more, got {sequence_length}")
        self.tokens, self.name = tokens, name
        self.end_of_text, self.begin = end_of_text, tuple(begin)
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def windows(self) -> int:
        """Return the number of whole windows."""
        return len(self.tokens) // self.sequence_length

    def window(self, index: int) -> NDArray[np.int64]:
        """Return window ``index``, shape (T,). Raises IndexError outside 0 … windows − 1."""
        return self.batch([index])[0]

    def batch(self, indices: ArrayLike) -> NDArray[np.int64]:
        """Return the windows at ``indices``, shape (B, T). Raises IndexError outside 0 … windows − 1."""
        length, count = self.sequence_length, self.windows()
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.ndim != 1:
            raise ValueError(f"indices must have one dimension, got shape {chosen.shape}")
        if chosen.size and (chosen.min() < 0 or chosen.max() >= count):
            raise IndexError(
                f"window {chosen.max() if chosen.max() >= count else chosen.min()} of {count} "
                f"({self.name}, {length} tokens each)"
            )
        return opened(
            self.tokens[: count * length].reshape(count, length)[chosen].astype(np.int64), self.begin
        )

    def order(self, *, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return all window indices in the order of an epoch, shape (windows,).

        It depends on seed, epoch and the number of windows alone, on every platform and in every numpy version: it
        sorts the raw output of a PCG64 generator, which numpy promises to keep, rather than calling ``permutation``,
        which it does not.
        """
        keys = random_bits(f"windows {seed} {epoch}").random_raw(self.windows())
        return np.argsort(keys, kind="stable").astype(np.int64)

    def document_ids(self, tokens: ArrayLike) -> NDArray[np.int64]:
        """Return, for windows of any shape (..., T), which document each token is of: 0, 1, … from each row's start.

        The end-of-text token belongs to the document that it ends.
        """
        ends = (np.asarray(tokens) == self.end_of_text).astype(np.int64)
        return np.cumsum(ends, axis=-1) - ends


def random_bits(seed: str) -> np.random.PCG64:
    """The same generator by the same text, in every version of numpy: only its raw output is promised to stay."""
    material = hashlib.sha256(f"layerroute {seed}".encode()).digest()
    return np.random.PCG64([int.from_bytes(material[at : at + 4], "big") for at in range(0, 16, 4)])


def require_windows(sequence: TokenSequence, count: int) -> None:
    """Check that ``sequence`` fills ``count`` windows, such as one batch.

    Raises:
        UserError: it does not; the message names the tokens present and needed.
    """
    present, length = sequence.windows(), sequence.sequence_length
    if present < count:
        raise UserError(
            f"the {sequence.name} data hold {len(sequence)} tokens, which is {present} windows of {length}, and "
            f"{count * length} tokens are needed ({count} windows); give more text, a smaller batch or a smaller "
            "data.sequence_length"
        )
