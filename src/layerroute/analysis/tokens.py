"""Do kinds of tokens take different paths? Shares by kind, with intervals and a test against shuffled decisions.

Descriptive: a few validation sentences of one run. A flat picture must be seen to be flat, hence the permutation test.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerroute.analysis.format import percent, probability
from layerroute.analysis.runs import TokenRoutes
from layerroute.analysis.table import Cell, Column, Row, Table

RESAMPLES = 2000
FEWEST_SENTENCES = 3


@dataclass(frozen=True, kw_only=True)
class KindRate:
    """Mean share of decisions for the expensive path (over tokens and sites) of one kind of token.

    ``low`` and ``high`` bound the 95 % bootstrap interval over sentences; None with fewer than three sentences.
    """

    kind: str
    tokens: int
    rate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class TokenKinds:
    """All kinds, and the p value of the hypothesis that the kind of a token has nothing to do with its path."""

    kinds: tuple[KindRate, ...]
    p_value: float | None
    sentences: int
    tokens: int

    @property
    def differ(self) -> bool:
        """Whether the data show that kinds of tokens are routed differently (p < 0.05)."""
        return self.p_value is not None and self.p_value < 0.05

    @property
    def p_text(self) -> str:
        """``p = 0.012`` or ``p <0.001``."""
        text = probability(self.p_value)
        return f"p {text}" if text.startswith("<") else f"p = {text}"

    def table(self, expensive: str) -> Table:
        """The shares as a table."""
        rows = tuple(
            Row(
                cells=(
                    Cell(kind.kind),
                    Cell(str(kind.tokens), kind.tokens),
                    Cell(percent(kind.rate), kind.rate),
                    Cell(
                        "–" if kind.low is None else f"{percent(kind.low)} to {percent(kind.high)}", kind.low
                    ),
                )
            )
            for kind in self.kinds
        )
        test = "too few sentences for a test" if self.p_value is None else self.p_text
        return Table(
            name="Table of token kinds",
            title=f"Share of decisions for {expensive} by kind of token",
            columns=(
                Column(label="Kind of token"),
                Column(label="Tokens", numeric=True),
                Column(label=f"{expensive} share", numeric=True),
                Column(label="95% interval", numeric=True),
            ),
            rows=rows,
            notes=(
                f"{self.tokens} tokens of {self.sentences} validation sentences, one run; bootstrap over "
                f"sentences. Permutation test against decisions shuffled within each sentence: {test}.",
            ),
        )


def token_kind(token: str, *, starts: bool) -> str:
    """The kind of a token by its text; ``starts``: nothing but white space comes before it on its sentence."""
    text = token.strip()
    if not text:
        return "white space"
    if text[0].isdigit():
        return "number"
    if not any(character.isalnum() for character in text):
        return "punctuation"
    return "word start" if starts or token[0].isspace() else "word continuation"


def token_kinds(routes: TokenRoutes, *, seed: int = 0) -> TokenKinds | None:
    """Compare kinds of tokens in ``routes``; None where there is no token.

    The resampling draws from ``seed``, so that the same routes give the same numbers.
    """
    labels: list[str] = []
    sentence: list[int] = []
    rows: list[float] = []
    for index, (tokens, choice, _) in enumerate(routes.sentences):
        before = " "
        for token, decisions in zip(tokens, choice, strict=True):
            labels.append(token_kind(token, starts=before[-1:].isspace()))
            sentence.append(index)
            rows.append(float(np.mean([path == len(routes.paths) - 1 for path in decisions])))
            before = token or before
    if not rows or not routes.sites:
        return None
    names = sorted(set(labels))
    kind = np.array([names.index(label) for label in labels])
    of = np.array(sentence)
    rate = np.array(rows)
    generator = np.random.default_rng(seed)
    enough = len(routes.sentences) >= FEWEST_SENTENCES
    bounds = _bootstrap(kind, of, rate, len(names), generator) if enough else None
    p_value = _permutation(kind, of, rate, len(names), generator) if enough and len(names) > 1 else None
    found = [
        KindRate(
            kind=name,
            tokens=int((kind == index).sum()),
            rate=float(rate[kind == index].mean()),
            low=None if bounds is None else bounds[index][0],
            high=None if bounds is None else bounds[index][1],
        )
        for index, name in enumerate(names)
    ]
    return TokenKinds(
        kinds=tuple(sorted(found, key=lambda entry: -entry.rate)),
        p_value=p_value,
        sentences=len(routes.sentences),
        tokens=len(rows),
    )


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def _bootstrap(
    kind: Ints, sentence: Ints, rate: Floats, kinds: int, generator: np.random.Generator
) -> Sequence[tuple[float | None, float | None]]:
    number_of = int(sentence.max()) + 1
    sums = np.zeros((number_of, kinds))
    counts = np.zeros((number_of, kinds))
    np.add.at(sums, (sentence, kind), rate)
    np.add.at(counts, (sentence, kind), 1)
    drawn = generator.integers(0, number_of, (RESAMPLES, number_of))
    totals, amounts = sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
    bounds: list[tuple[float | None, float | None]] = []
    for index in range(kinds):
        there = amounts[:, index] > 0
        means = totals[there, index] / amounts[there, index]
        # A kind that is in very few sentences has no honest interval: most of its resamples are alike.
        if (counts[:, index] > 0).sum() < FEWEST_SENTENCES:
            bounds.append((None, None))
        else:
            bounds.append((float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))))
    return bounds


def _permutation(
    kind: Ints, sentence: Ints, rate: Floats, kinds: int, generator: np.random.Generator
) -> float:
    counts = np.bincount(kind, minlength=kinds)
    overall = rate.mean()

    def spread(values: Floats) -> float:
        means = np.bincount(kind, weights=values, minlength=kinds) / counts
        return float((counts * (means - overall) ** 2).sum())

    observed = spread(rate)
    groups = [np.flatnonzero(sentence == index) for index in np.unique(sentence)]
    reached = 0
    for _ in range(RESAMPLES):
        shuffled = rate.copy()
        for group in groups:
            shuffled[group] = rate[generator.permutation(group)]
        reached += spread(shuffled) >= observed - 1e-12
    return (1 + reached) / (1 + RESAMPLES)
