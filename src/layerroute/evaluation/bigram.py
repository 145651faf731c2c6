"""A bigram model with back-off: the floor that a trained language model has to beat, on the same tokens.

Shapes: N windows, T tokens of a window, V entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 1 << 22  # predictions scored at once: some 200 MB
_LARGEST_TABLE = 1 << 26  # pair counts in a table of up to 512 MB; several times faster than sorting


@dataclass(frozen=True)
class BigramModel:
    r"""Interpolated Kneser-Ney bigram model (Chen and Goodman 1999, §2.7), normalised for every context.

    .. math::

        p(w \mid v) = \frac{\max(c(vw) - D, 0)}{c(v)} + \frac{D \, N_{1+}(v\cdot)}{c(v)} \, p_1(w), \qquad
        p_1(w) = \frac{N_{1+}(\cdot w) + 1}{N_{1+}(\cdot\cdot) + V}

    with c the counts of pairs and of contexts, N₁₊ the number of different pairs, and D = n₁ / (n₁ + 2 n₂) from the
    numbers of pairs seen once and twice (0.75 where that does not lie between 0 and 1). The lower order has one added
    to every count, so that tokens never seen have a probability too; a context never seen gives p₁ alone.

    Attributes:
        codes: sorted codes v·V + w of the pairs seen, shape (pairs,).
        discounted: (c(vw) - D) / c(v) of those pairs, shape (pairs,).
        backoff: weight of p₁ after each context, shape (V,).
        unigram: p₁, shape (V,).
    """

    codes: NDArray[np.int64]
    discounted: NDArray[np.float64]
    backoff: NDArray[np.float64]
    unigram: NDArray[np.float64]

    @classmethod
    def fit(cls, tokens: ArrayLike, vocabulary_size: int) -> BigramModel:
        """Count the pairs of neighbours in ``tokens``, shape (tokens,), of ids below ``vocabulary_size``.

        Raises:
            ValueError: fewer than two tokens, or ids outside 0 … V-1.
        """
        stream = np.asarray(tokens)
        if stream.ndim != 1 or len(stream) < 2:
            raise ValueError(f"a bigram model needs two or more tokens in one row, got shape {stream.shape}")
        _check_ids(stream, vocabulary_size, "tokens")
        pairs = stream[:-1].astype(np.int64)
        pairs *= vocabulary_size
        pairs += stream[1:]
        codes, counts = _count(pairs, vocabulary_size)
        del pairs
        contexts, targets = np.divmod(codes, vocabulary_size)

        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once > 0 and twice > 0 else 0.75
        context_counts = np.bincount(contexts, weights=counts, minlength=vocabulary_size)
        continuations = np.bincount(contexts, minlength=vocabulary_size)
        preceding = np.bincount(targets, minlength=vocabulary_size)
        seen = context_counts > 0
        backoff = np.ones(vocabulary_size)
        backoff[seen] = discount * continuations[seen] / context_counts[seen]
        return cls(
            codes=codes,
            discounted=(counts - discount) / context_counts[contexts],
            backoff=backoff,
            unigram=(preceding + 1.0) / (len(codes) + vocabulary_size),
        )

    def probability(self, inputs: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
        """Return p(target | input) for arrays of ids of one shape."""
        contexts = np.asarray(inputs, dtype=np.int64)
        words = np.asarray(targets, dtype=np.int64)
        wanted = contexts * len(self.unigram) + words
        at = np.minimum(np.searchsorted(self.codes, wanted), len(self.codes) - 1)
        direct = np.where(self.codes[at] == wanted, self.discounted[at], 0.0)
        return direct + self.backoff[contexts] * self.unigram[words]

    def cross_entropy(self, inputs: ArrayLike, targets: ArrayLike) -> float:
        """Return the mean of -log p(target | input) in nats, over the positions whose target is not negative.

        Raises:
            ValueError: different shapes, no position to score, or ids outside 0 … V-1.
        """
        contexts, words = np.asarray(inputs), np.asarray(targets)
        if contexts.shape != words.shape:
            raise ValueError(f"inputs have shape {contexts.shape} and targets {words.shape}")
        scored = words >= 0
        contexts, words = contexts[scored], words[scored]
        if not len(words):
            raise ValueError("there is no position to score")
        _check_ids(contexts, len(self.unigram), "inputs")
        _check_ids(words, len(self.unigram), "targets")
        total = 0.0
        for start in range(0, len(words), _CHUNK):
            part = slice(start, start + _CHUNK)
            total -= float(np.log(self.probability(contexts[part], words[part])).sum())
        return total / len(words)


def bigram_cross_entropy(train_tokens: ArrayLike, windows: ArrayLike, vocabulary_size: int) -> float:
    """Return the validation loss of a :class:`BigramModel` fitted on ``train_tokens``, in nats per token.

    Args:
        train_tokens: the training tokens, shape (tokens,), end-of-text included.
        windows: the validation windows, shape (N, T), in which tokens 1 … T-1 are predicted, as a causal language
            model does when its labels are its inputs.
        vocabulary_size: V, the size of the model's vocabulary; every entry has a probability.

    Raises:
        ValueError: see :meth:`BigramModel.fit` and :meth:`BigramModel.cross_entropy`.
    """
    rows = np.asarray(windows)
    if rows.ndim != 2:
        raise ValueError(f"windows must have shape (N, T), got {rows.shape}")
    return BigramModel.fit(train_tokens, vocabulary_size).cross_entropy(rows[:, :-1], rows[:, 1:])


def _count(pairs: NDArray[np.int64], vocabulary_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted different codes and how often each occurs: by table where it is small, else by sorting."""
    if vocabulary_size**2 > _LARGEST_TABLE:
        return np.unique(pairs, return_counts=True)
    table = np.bincount(pairs, minlength=vocabulary_size**2)
    codes = np.flatnonzero(table)
    return codes, table[codes]


def _check_ids(ids: NDArray[np.generic], vocabulary_size: int, what: str) -> None:
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary_size:
        raise ValueError(
            f"{what} hold ids from {ids.min()} to {ids.max()}; the vocabulary has {vocabulary_size}"
        )
