"""Windows of several kinds: shares, order, and what is told where there are too few."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping.calibration import Windows, draw_windows
from layerroute.skipping.calibration.windows import in_turn


class Letters:
    """A tokenizer: a token a character."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) for letter in text]}


def texts(**counts):
    return {name: iter([name[0] * 40] * count) for name, count in counts.items()}


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (2, 1), (0.7, 0.2, 0.1), (5, 1, 1)])
def test_the_first_windows_hold_the_shares_for_every_number(shares):
    order = list(islice(in_turn(shares), 300))
    for n in range(1, len(order) + 1):
        counts = Counter(order[:n])
        assert all(abs(counts[i] - n * share / sum(shares)) < 1 for i, share in enumerate(shares))


def test_windows_know_their_kinds():
    drawn = draw_windows(
        texts(a=9, b=9, c=9), Letters(), tokens=6 * 20, length=20, seed=0, shares={"a": 1, "b": 1, "c": 1}
    )
    assert drawn.kinds == ("a", "b", "c", "a", "b", "c")
    assert [chr(row[0]) for row in drawn.ids] == ["a", "b", "c", "a", "b", "c"]
    assert drawn.first(60).kinds == ("a", "b", "c")
    assert Windows(ids=torch.zeros(3, 4, dtype=torch.long)).kinds == ("text",) * 3
    with pytest.raises(ValueError, match="as many kinds"):
        Windows(ids=torch.zeros(3, 4, dtype=torch.long), kinds=("a",))


def test_one_kind_is_drawn_as_documents_without_a_name():
    documents = ["".join(chr(97 + (i * j) % 26) for j in range(900)) for i in range(1, 9)]
    plain = draw_windows(iter(documents), Letters(), tokens=80, length=20, seed=3)
    named = draw_windows({"prose": iter(documents)}, Letters(), tokens=80, length=20, seed=3)
    assert plain.fingerprint == named.fingerprint and plain.kinds == ("text",) * 4


def test_a_kind_that_is_too_short_is_named():
    with pytest.raises(
        UserError, match=r"kind 'b' has 1 documents of at least 20 tokens among 1 left, and 3"
    ):
        draw_windows(texts(a=9, b=1), Letters(), tokens=6 * 20, length=20, seed=0)
    with pytest.raises(UserError, match="the text has 1 documents"):
        draw_windows(iter(["a" * 40]), Letters(), tokens=40, length=20, seed=0)
