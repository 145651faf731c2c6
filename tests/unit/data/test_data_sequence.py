"""Windows, their order, and document ids: held to plain loops over random token streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerroute.data import TokenSequence, require_windows
from layerroute.errors import UserError

_END = 0

ORDER_42_0 = [1, 7, 5, 2, 0, 9, 11, 6, 8, 3, 4, 10]
ORDER_42_1 = [11, 4, 10, 7, 8, 6, 3, 0, 2, 1, 9, 5]


def sequence(tokens: list[int], length: int, dtype: str = "uint16") -> TokenSequence:
    return TokenSequence(np.array(tokens, dtype=dtype), end_of_text=_END, sequence_length=length)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 9))
def test_windows_are_the_stream_cut_in_order(tokens: list[int], length: int) -> None:
    seen = sequence(tokens, length)
    count = len(tokens) // length
    assert len(seen) == len(tokens)
    assert seen.windows() == count
    joined = [token for index in range(count) for token in seen.window(index).tolist()]
    assert joined == tokens[: count * length]
    assert seen.batch(np.arange(count)).shape == (count, length)
    assert seen.batch(np.arange(count)).dtype == np.int64


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_document_ids_count_the_ends_before(tokens: list[int]) -> None:
    expected, current = [], 0
    for token in tokens:
        expected.append(current)
        current += token == _END
    assert sequence([1], 1).document_ids(tokens).tolist() == expected


def test_document_ids_restart_in_each_row() -> None:
    rows = np.array([[5, 0, 6, 0, 0, 7], [0, 1, 2, 3, 4, 5]])
    assert sequence([1, 2], 2).document_ids(rows).tolist() == [[0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1]]


@given(st.integers(0, 300), st.integers(-(2**40), 2**40), st.integers(0, 5))
def test_an_order_visits_every_window_once(count: int, seed: int, epoch: int) -> None:
    order = sequence([1] * (2 * count), 2).order(seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))


def test_orders_are_fixed_forever_and_differ_by_seed_and_epoch() -> None:
    seen = sequence([1] * 24, 2)
    # Runs are resumed from the epoch and the position in it, so these numbers must never change.
    assert seen.order(seed=42, epoch=0).tolist() == ORDER_42_0
    assert seen.order(seed=42, epoch=1).tolist() == ORDER_42_1
    assert seen.order(seed=43, epoch=0).tolist() not in (ORDER_42_0, ORDER_42_1)
    assert seen.order(seed=4, epoch=20).tolist() != seen.order(seed=42, epoch=0).tolist()


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_windows_outside_are_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"window {index} of 3"):
        sequence([1] * 13, 4).batch([0, index])


def test_what_is_handed_out_is_a_copy() -> None:
    seen = sequence([1, 2, 3, 4], 2)
    seen.window(0)[0] = 9
    assert seen.window(0).tolist() == [1, 2]


def test_a_source_smaller_than_a_batch_is_told_in_tokens() -> None:
    seen = sequence([1] * 100, 16)
    require_windows(seen, 6)
    with pytest.raises(
        UserError, match=r"hold 100 tokens, which is 6 windows of 16, and 112 tokens are needed"
    ):
        require_windows(seen, 7)
