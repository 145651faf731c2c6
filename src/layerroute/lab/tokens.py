"""Do kinds of tokens take different paths? Shares by kind, with intervals and tests against shuffled decisions.

Descriptive: a few validation sentences of one run. A flat picture must be seen to be flat, hence the permutation test.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.format import percent, probability
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.table import Cell, Column, Row, Table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

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


_WORDS = """
a about after all also an and any are as at be because been before being but by can could did do does for
from had has have he her him his how i if in into is it its just me more most my no not now of on one
only or other our out over she so some such than that the their them then there these they this those to
too under up very was we were what when where which while who why will with would you your
"""
STOP_WORDS = frozenset(_WORDS.split())
"""Words of English that carry grammar more than content."""

UNTESTED = frozenset({"place in context"})
"""Cuts whose kinds are shared by all tokens of a sentence, so that shuffling within sentences says nothing."""

_RECALL = re.compile(r"(?P<part>[kvf])\d+|\?|<\|endoftext\|>|")
"""Tokens of the synthetic recall tasks: keys, values, fillers, and the mark before a question."""

POSITIONS = ((0, 32), (32, 128), (128, 512), (512, 1 << 40))
"""Ranges of places in the context, in tokens."""


def token_kind(token: str, *, starts: bool, word: str | None = None) -> str:
    """The kind of a token by its text.

    Args:
        starts: nothing but white space comes before it on its sentence.
        word: the whole word that it begins, where it is known; default the token's own text.
    """
    text = token.strip()
    if not text:
        return "white space"
    if text[0].isdigit():
        return "number"
    if not any(character.isalnum() for character in text):
        return "punctuation"
    if not (starts or token[0].isspace()):
        return "word continuation"
    return "stop word" if (word or text).lower() in STOP_WORDS else "word start"


@dataclass(frozen=True)
class _Decisions:
    """Tokens of all sentences in a row: the sentence of each, and at what share of the sites its path is expensive."""

    sentence: Ints
    rate: Floats


def _decisions(routes: TokenRoutes) -> _Decisions | None:
    sentence = [index for index, (tokens, _, _) in enumerate(routes.sentences) for _ in tokens]
    expensive = len(routes.paths) - 1
    rows = [
        float(np.mean([path == expensive for path in decisions]))
        for _, choice, _ in routes.sentences
        for decisions in choice
        if routes.sites
    ]
    return _Decisions(np.array(sentence), np.array(rows)) if rows else None


def token_groups(routes: TokenRoutes, *, seed: int = 0) -> dict[str, TokenKinds]:
    """By name of the cut: kind of token, and, where the run noted them, corpus frequency, loss and place in context.

    ``rare`` is the fifth of these tokens that the training text holds most seldom, ``high loss`` the fifth that the
    model predicted worst; the others are told beside them. Places are not tested: all tokens of a sentence share one.
    The resampling draws from ``seed``, so that the same routes give the same numbers.
    """
    decisions = _decisions(routes)
    if decisions is None:
        return {}
    return {
        cut: _compare(labels, decisions, seed=seed, test=cut not in UNTESTED)
        for cut, labels in token_cuts(routes).items()
    }


def token_cuts(routes: TokenRoutes) -> dict[str, list[str]]:
    """By name of the cut, what each token of ``routes`` is, all sentences in a row; see ``token_groups``."""
    found = {"kind": _recall_labels(routes) or _kind_labels(routes)}
    facts = routes.facts
    if not facts:
        return found
    losses = [loss for fact in facts for loss in fact.losses]
    places = [fact.start + index for fact in facts for index in range(len(fact.losses))]
    if all(fact.seen is not None for fact in facts):
        seen = np.array([count for fact in facts for count in fact.seen or ()], dtype=np.float64)
        limit = np.quantile(seen, 0.2)
        found["corpus frequency"] = ["rare" if count <= limit else "frequent" for count in seen]
    known = np.array([np.nan if loss is None else loss for loss in losses], dtype=np.float64)
    if np.isfinite(known).any():
        worst = np.nanquantile(known, 0.8)
        found["loss"] = [
            "not predicted" if np.isnan(loss) else "high loss" if loss >= worst else "lower loss"
            for loss in known
        ]
    found["place in context"] = [
        next(
            f"{low} to {high - 1}" if high < 1 << 40 else f"{low} on" for low, high in POSITIONS if at < high
        )
        for at in places
    ]
    return found


def groups_table(groups: Mapping[str, TokenKinds], expensive: str) -> Table | None:
    """All cuts in one table; None where there is none."""
    if not groups:
        return None
    rows, tests = [], []
    for cut, group in groups.items():
        tests.append(f"{cut}: {'not tested' if group.p_value is None else group.p_text}")
        for kind in group.kinds:
            interval = "–" if kind.low is None else f"{percent(kind.low)} to {percent(kind.high)}"
            rows.append(
                Row(
                    cells=(
                        Cell(cut),
                        Cell(kind.kind),
                        Cell(str(kind.tokens), kind.tokens),
                        Cell(percent(kind.rate), kind.rate),
                        Cell(interval, kind.low),
                    )
                )
            )
    first = next(iter(groups.values()))
    return Table(
        name="Table of token kinds",
        title=f"Share of decisions for {expensive} by kind of token",
        columns=(
            Column(label="By"),
            Column(label="Tokens that are"),
            Column(label="Tokens", numeric=True),
            Column(label=f"{expensive} share", numeric=True),
            Column(label="95% interval", numeric=True),
        ),
        rows=tuple(rows),
        notes=(
            f"{first.tokens} tokens of {first.sentences} validation sentences, one run; bootstrap over sentences. "
            f"Permutation tests against decisions shuffled within each sentence: {'; '.join(tests)}.",
        ),
    )


def _kind_labels(routes: TokenRoutes) -> list[str]:
    labels: list[str] = []
    for tokens, _, _ in routes.sentences:
        before = " "
        for index, token in enumerate(tokens):
            labels.append(token_kind(token, starts=before[-1:].isspace(), word=_whole_word(tokens, index)))
            before = token or before
    return labels


def _recall_labels(routes: TokenRoutes) -> list[str]:
    """What each token of a recall task is; empty where the tokens are of other text.

    A key that its sequence held before is one that is asked for.
    """
    names = {"v": "value", "f": "filler", None: "mark"}
    labels = []
    for tokens, _, _ in routes.sentences:
        before: set[str] = set()
        for token in tokens:
            match = _RECALL.fullmatch(token.strip())
            if match is None:
                return []
            part = match["part"]
            labels.append(names[part] if part != "k" else "key, asked" if token in before else "key, told")
            before.add(token)
    return labels


def _whole_word(tokens: Sequence[str], index: int) -> str:
    """The word that a token begins: itself and the continuations after it."""
    word = tokens[index].strip()
    for token in tokens[index + 1 :]:
        if not token or token[0].isspace() or not token[0].isalpha():
            break
        word += token
    return word


def _compare(labels: Sequence[str], decisions: _Decisions, *, seed: int, test: bool = True) -> TokenKinds:
    names = sorted(set(labels))
    kind = np.array([names.index(label) for label in labels])
    of, rate = decisions.sentence, decisions.rate
    sentences = len(np.unique(of))
    generator = np.random.default_rng(seed)
    enough = sentences >= FEWEST_SENTENCES
    bounds = _bootstrap(kind, of, rate, len(names), generator) if enough else None
    tested = enough and test and len(names) > 1
    p_value = _permutation(kind, of, rate, len(names), generator) if tested else None
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
        sentences=sentences,
        tokens=len(rate),
    )


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
