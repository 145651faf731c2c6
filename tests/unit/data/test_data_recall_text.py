"""Recall in plain English: every answer stands in its context, and length changes nothing that is asked."""

from __future__ import annotations

import re

import pytest

from layerroute.data.recall.text import FILLERS, KEYS, VALUES, TextRecall
from layerroute.errors import UserError


def facts(context: str) -> list[tuple[str, str]]:
    return re.findall(r"The (\w+) is (\w+)\.", context)


def test_words_are_distinct_and_of_two_kinds() -> None:
    assert len(set(KEYS)) == len(KEYS) == 64 and len(set(VALUES)) == len(VALUES) == 64
    assert not set(KEYS) & set(VALUES)
    assert not any(word in sentence.lower().split() for sentence in FILLERS for word in KEYS)


def test_mqar_asks_for_every_fact_and_leaves_the_last_answer_open() -> None:
    for row in TextRecall(task="mqar", pairs=5, filler=3, documents=20).rows():
        told = facts(row["context"])
        assert len(told) == 5 + 4 and len({key for key, _ in told}) == 5
        assert all(told[n] in told[:5] for n in range(5, 9))
        asked = re.search(r"The (\w+) is$", row["context"])
        assert asked is not None and (asked[1], row["target"]) in told[:5]
        assert asked[1] not in {key for key, _ in told[5:]}


@pytest.mark.parametrize("pairs", [1, 4])
def test_a_needle_is_among_the_filler_with_its_distractors(pairs: int) -> None:
    rows = TextRecall(task="needle", pairs=pairs, filler=30, documents=40).rows()
    places = []
    for row in rows:
        told = facts(row["context"])
        assert len(told) == pairs
        key = re.search(r"The (\w+) is$", row["context"])
        assert key is not None and (key[1], row["target"]) in told
        sentences = row["context"].split(". ")
        assert len(sentences) == 30 + pairs + 1
        places.append(sentences.index(f"The {key[1]} is {row['target']}"))
    assert min(places) < 8 and max(places) > 22, "near and far"


def test_copying_and_induction_end_where_the_context_decides() -> None:
    for row in TextRecall(task="copying", pairs=6, documents=10).rows():
        first, again = re.findall(r"List: ([\w, ]+)", row["context"])
        words = first.split(", ")
        assert again.rstrip(",").split(", ") == words[:-1] and row["target"] == words[-1]
    for row in TextRecall(task="induction", pairs=6, documents=10).rows():
        first, again = re.findall(r"List: ([\w, ]+)", row["context"])
        words = first.split(", ")
        assert words[words.index(again.rstrip(",")) + 1] == row["target"]


@pytest.mark.parametrize("task", ["mqar", "needle", "copying", "induction"])
def test_filler_makes_it_longer_and_asks_for_the_same(task: str) -> None:
    short, long = (TextRecall(task=task, filler=n, documents=10).rows() for n in (2, 32))  # type: ignore[arg-type]
    assert [row["target"] for row in short] == [row["target"] for row in long]
    for one, other in zip(short, long, strict=True):
        assert set(facts(one["context"])) == set(facts(other["context"]))
        assert other["context"].count(".") == one["context"].count(".") + 30
    assert short == TextRecall(task=task, filler=2, documents=10).rows(), "the same every time"  # type: ignore[arg-type]
    assert short != TextRecall(task=task, filler=2, documents=10, seed=1).rows()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "needle", "pairs": 0}, "pairs is 0"),
        ({"task": "copying", "pairs": 1}, "copying needs 2 or more"),
        ({"task": "mqar", "pairs": 65}, "there are 64 words"),
        ({"task": "mqar", "filler": -1}, "filler is -1"),
    ],
)
def test_what_cannot_be_made_is_told(settings: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TextRecall(**settings)
