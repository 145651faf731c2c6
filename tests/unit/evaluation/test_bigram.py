"""The bigram floor: held to a dictionary version written from the formula, normalised, and hard to fool."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerroute.evaluation import bigram
from layerroute.evaluation.bigram import BigramModel, bigram_cross_entropy

V = 7
_streams = st.lists(st.integers(0, V - 1), min_size=2, max_size=80)


def plain_probability(tokens: list[int], context: int, word: int) -> float:
    """Interpolated Kneser-Ney with dictionaries, term by term."""
    pairs = Counter(itertools.pairwise(tokens))
    n1, n2 = (sum(count == n for count in pairs.values()) for n in (1, 2))
    discount = n1 / (n1 + 2 * n2) if n1 and n2 else 0.75
    unigram = (sum(pair[1] == word for pair in pairs) + 1) / (len(pairs) + V)
    total = sum(count for pair, count in pairs.items() if pair[0] == context)
    if total == 0:
        return unigram
    kinds = sum(pair[0] == context for pair in pairs)
    return max(pairs[context, word] - discount, 0) / total + discount * kinds / total * unigram


@given(_streams)
def test_probabilities_are_those_of_the_formula_and_sum_to_one(tokens: list[int]) -> None:
    model = BigramModel.fit(tokens, V)
    contexts, words = (grid.ravel() for grid in np.meshgrid(np.arange(V), np.arange(V), indexing="ij"))
    found = model.probability(contexts, words).reshape(V, V)
    expected = [[plain_probability(tokens, context, word) for word in range(V)] for context in range(V)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    assert found.min() > 0


@given(_streams)
def test_counting_by_table_and_by_sorting_agree(tokens: list[int]) -> None:
    pairs = np.array(tokens[:-1]) * V + np.array(tokens[1:])
    by_table = bigram._count(pairs, V)
    by_sorting = np.unique(pairs, return_counts=True)
    assert all(np.array_equal(one, two) for one, two in zip(by_table, by_sorting, strict=True))


def test_large_vocabularies_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(0, V, 500)
    by_table = BigramModel.fit(tokens, V)
    monkeypatch.setattr(bigram, "_LARGEST_TABLE", 0)
    by_sorting = BigramModel.fit(tokens, V)
    assert np.array_equal(by_table.codes, by_sorting.codes)
    assert np.array_equal(by_table.discounted, by_sorting.discounted)


def test_a_case_by_hand() -> None:
    # Pairs of 0 1 0 1 0 2: 01 twice, 10 twice, 02 once; D = 1 / (1 + 2·2) = 0.2.
    model = BigramModel.fit([0, 1, 0, 1, 0, 2], 4)
    unigram = np.array([2, 2, 2, 1]) / 7  # each of 0, 1, 2 follows one kind of context
    assert model.probability(0, 1) == pytest.approx((2 - 0.2) / 3 + 0.2 * 2 / 3 * unigram[1])
    assert model.probability(0, 3) == pytest.approx(0.2 * 2 / 3 * unigram[3])
    assert model.probability(2, 3) == pytest.approx(unigram[3])  # 2 is never followed
    windows = np.array([[0, 1, 0], [3, 2, 3]])
    terms = [(0, 1), (1, 0), (3, 2), (2, 3)]
    expected = -sum(math.log(model.probability(*term)) for term in terms) / 4
    assert bigram_cross_entropy([0, 1, 0, 1, 0, 2], windows, 4) == pytest.approx(expected)


def test_windows_predict_the_positions_of_a_causal_model() -> None:
    """A window of T tokens gives T-1 predictions; no pair crosses from one window to the next."""
    stream = np.random.default_rng(0).integers(0, V, 400)
    windows = np.random.default_rng(1).integers(0, V, (6, 10))
    by_windows = bigram_cross_entropy(stream, windows, V)
    by_pairs = BigramModel.fit(stream, V).cross_entropy(windows[:, :-1], windows[:, 1:])
    assert by_windows == by_pairs
    assert by_windows != pytest.approx(bigram_cross_entropy(stream, windows.reshape(1, -1), V), rel=1e-6)


def test_positions_without_a_target_are_left_out() -> None:
    stream = np.random.default_rng(0).integers(0, V, 400)
    inputs = np.array([[1, 2, 3], [4, 5, 6]])
    targets = np.array([[2, -100, 4], [-100, 6, -1]])
    model = BigramModel.fit(stream, V)
    kept = model.cross_entropy(np.array([1, 3, 5]), np.array([2, 4, 6]))
    assert model.cross_entropy(inputs, targets) == pytest.approx(kept, rel=1e-12)


def test_scoring_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    stream, windows = draw.integers(0, V, 1000), draw.integers(0, V, (20, 11))
    whole = bigram_cross_entropy(stream, windows, V)
    monkeypatch.setattr(bigram, "_CHUNK", 7)
    assert bigram_cross_entropy(stream, windows, V) == pytest.approx(whole, rel=1e-12)


def test_it_comes_near_the_entropy_of_the_chain_that_made_the_tokens() -> None:
    """On a Markov chain the loss tends to the chain's entropy rate; add-one unigrams would stay far above."""
    draw = np.random.default_rng(0)
    size, count = 20, 200_000
    chain = draw.dirichlet(np.full(size, 0.2), size=size)
    cumulative, noise = chain.cumsum(axis=1), draw.random(count)
    tokens = np.zeros(count, dtype=np.uint16)
    for at in range(1, count):
        tokens[at] = min(int(np.searchsorted(cumulative[tokens[at - 1]], noise[at])), size - 1)
    train, windows = tokens[: count // 2], tokens[count // 2 :].reshape(-1, 100)
    weights = np.bincount(windows[:, :-1].ravel(), minlength=size) / windows[:, :-1].size
    entropy = -float((weights[:, None] * chain * np.log(np.maximum(chain, 1e-300))).sum())
    loss = bigram_cross_entropy(train, windows, size)
    unigram_loss = -float(np.log(np.bincount(train, minlength=size) / len(train))[windows[:, 1:]].mean())
    assert entropy - 0.01 < loss < entropy + 0.02
    assert unigram_loss > loss + 0.5


@pytest.mark.parametrize(
    ("tokens", "windows", "said"),
    [
        ([1], [[1, 2]], "two or more tokens"),
        ([[1, 2]], [[1, 2]], "two or more tokens"),
        ([1, V], [[1, 2]], "the vocabulary has 7"),
        ([1, -1], [[1, 2]], "the vocabulary has 7"),
        ([1, 2], [[1, V]], "targets hold ids from 7 to 7"),
        ([1, 2], [[V, 1]], "inputs hold ids from 7 to 7"),
        ([1, 2], [1, 2], r"shape \(N, T\)"),
        ([1, 2], [[1]], "no position to score"),
    ],
)
def test_wrong_input_is_refused(tokens: object, windows: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bigram_cross_entropy(tokens, windows, V)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("targets", "said"), [([1], "inputs have shape"), ([-100, -100], "no position to score")]
)
def test_pairs_that_cannot_be_scored_are_refused(targets: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BigramModel.fit([1, 2], V).cross_entropy([1, 2], targets)


@pytest.mark.slow
def test_ten_million_tokens_take_seconds() -> None:
    draw = np.random.default_rng(0)
    train, held_out = (
        (draw.random(count) ** 3 * 50_000).astype(np.uint16) for count in (10_000_000, 1_000_000)
    )
    entropy = math.log(50_000) + math.log(3) - 2  # of one token; neighbours are independent
    begun = time.process_time()
    loss = bigram_cross_entropy(train, held_out.reshape(-1, 250), 50_257)
    assert entropy < loss < entropy + 0.5
    assert time.process_time() - begun < 30
