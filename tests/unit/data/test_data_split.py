"""No text on both sides, something on each side, and sides that stay when documents are added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerroute.data.spool import split_by_digest
from layerroute.errors import UserError

_digests = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50)
_shares = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)


@given(_digests, _shares)
def test_sides_are_disjoint_and_filled_whatever_the_share(values: list[int], share: float) -> None:
    digests = np.array(values, dtype=np.uint64)
    if len(set(values)) < 2:
        with pytest.raises(UserError, match="two different ones"):
            split_by_digest(digests, share, "it")
        return
    validates = split_by_digest(digests, share, "it")
    held_out, trained = set(digests[validates].tolist()), set(digests[~validates].tolist())
    assert held_out and trained
    assert not held_out & trained


def test_the_share_is_kept_and_added_documents_move_none() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64 - 1, 20_000, dtype=np.uint64)
    few, many = split_by_digest(digests[:5_000], 0.1, "it"), split_by_digest(digests, 0.1, "it")
    assert np.array_equal(many[:5_000], few)
    assert abs(many.mean() - 0.1) < 0.01
