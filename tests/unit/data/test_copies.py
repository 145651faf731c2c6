"""Copied tokens: the vectorised marks are those of the plain definition."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.data.configuration import DataConfig
from layerroute.data.copies import CopiesConfig, copied_tokens
from layerroute.errors import UserError

Ids = np.ndarray[Any, Any]


def plainly(ids: Ids, rule: CopiesConfig, blank: Collection[int] = (), documents: Ids | None = None) -> Ids:
    """The definition, word by word."""
    marks = np.zeros(ids.shape, dtype=bool)
    kept = np.zeros_like(ids) if documents is None else documents
    for row in range(len(ids)):
        for end in range(rule.length - 1, ids.shape[1]):
            begin = end - rule.length + 1
            stretch = [*ids[row, begin : end + 1]]
            if kept[row, begin] != kept[row, end] or ids[row, end] in blank:
                continue
            if len({token for token in stretch if token not in blank}) < 2:
                continue
            earlier = [
                at
                for at in range(begin)
                if [*ids[row, at : at + rule.length]] == stretch
                and set(kept[row, at : at + rule.length]) == {kept[row, end]}
            ]
            marks[row, end] = bool(earlier) and begin - max(earlier) > rule.beyond
    return marks


@pytest.mark.parametrize("length", [2, 3, 4, 7])
@pytest.mark.parametrize("beyond", [1, 5, 20])
@pytest.mark.parametrize("apart", [False, True])
def test_marks_of_random_tokens_are_those_of_the_definition(length: int, beyond: int, apart: bool) -> None:
    generator = np.random.default_rng(length)
    ids = generator.integers(0, 4, (5, 63)).astype(np.uint16)
    documents = np.cumsum(generator.random(ids.shape) < 0.05, axis=1) if apart else None
    rule = CopiesConfig(length=length, beyond=beyond)
    marks = copied_tokens(ids, rule, blank={0}, documents=documents)
    assert (marks == plainly(ids, rule, {0}, documents)).all()
    assert marks.any() or apart or length > 4


def test_marks_of_real_text_are_those_of_the_definition() -> None:
    text = np.frombuffer(Path(__file__).read_bytes()[:1600], dtype=np.uint8).reshape(2, 800)
    rule, blank = CopiesConfig(length=6, beyond=64), [*b" \n"]
    marks = copied_tokens(text, rule, blank=blank)
    assert (marks == plainly(text, rule, blank)).all()
    assert marks.sum() > 20 and not np.isin(text[marks], blank).any()


FAR = [1, 2, 3, 4, *range(10, 20)]


@pytest.mark.parametrize(
    ("tokens", "copied", "why"),
    [
        ([*FAR, 1, 2, 3, 4, 5], [17], "the last of four that stood there before, and no other"),
        ([*FAR, 1, 2, 3, 4, *range(10, 13)], [17, 18, 19, 20], "it goes on as it did before"),
        ([1, 2, 3, 4, 1, 2, 3, 4], [], "so near that a window sees it"),
        ([*FAR, 1, 2, 3, 4, 1, 2, 3, 4], [17], "the nearest occurrence counts"),
        ([7, 7, 7, 7, *range(10, 20), 7, 7, 7, 7], [], "one token repeated"),
        ([7, 0, 7, 7, *range(10, 20), 7, 0, 7, 7], [], "one token repeated, with blanks"),
        ([1, 2, 3, 0, *range(10, 20), 1, 2, 3, 0], [], "a blank token"),
        ([1, 0, 0, 2, *range(10, 20), 1, 0, 0, 2], [17], "two tokens around blanks"),
        ([1, 2, 3], [], "shorter than a stretch"),
    ],
)
def test_what_counts_as_a_copy(tokens: list[int], copied: list[int], why: str) -> None:
    marks = copied_tokens(np.array([tokens]), CopiesConfig(length=4, beyond=8), blank=[0])
    assert np.flatnonzero(marks[0]).tolist() == copied, why


def test_a_copy_is_of_its_own_sequence_and_document() -> None:
    halves = np.array([[1, 2, 3, 4, *range(10, 20)], [1, 2, 3, 4, *range(20, 30)]])
    rule = CopiesConfig(length=4, beyond=8)
    assert not copied_tokens(halves, rule).any(), "not of the row above"
    joined = halves.reshape(1, -1)
    assert copied_tokens(joined, rule).sum() == 1
    parts = np.repeat([[0, 1]], 14, axis=1)
    assert not copied_tokens(joined, rule, documents=parts).any()


@pytest.mark.parametrize(("key", "value"), [("length", 1), ("beyond", 0)])
def test_a_rule_that_marks_nothing_sensible_is_refused(key: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"data\.copies\.{key} is {value}"):
        CopiesConfig(**{key: value})


def test_copies_are_of_text() -> None:
    with pytest.raises(UserError, match=r"data\.copies is set but data\.source is 'recall'"):
        DataConfig(source="recall", recall={}, copies={"length": 4})  # type: ignore[arg-type]
    assert DataConfig(copies={"beyond": 64}).copies == CopiesConfig(beyond=64)  # type: ignore[arg-type]
