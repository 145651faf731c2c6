"""Which documents train and which validate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerroute.errors import UserError


def split_by_digest(digests: NDArray[np.uint64], share: float, described: str) -> NDArray[np.bool_]:
    """Return which documents validate, shape (documents,), from a keyed digest of each document's text.

    The digest is of the text and not of the name, so that a text which stands in a source twice, under two names,
    can never be trained on and validated with. A document's side depends on itself, the seed and ``share`` alone:
    adding documents moves none. Only where a side would stay empty, the nearest text crosses over.

    Args:
        digests: uniform over 64 bits, keyed with the split's seed.
        share: expected share of validation documents.
        described: the source, for messages.

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


def without(digests: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which documents have a text that is not among ``others``, shape (documents,)."""
    return ~np.isin(digests, others)
