"""Do kinds of tokens take different paths? Shares by kind, with intervals and tests against shuffled decisions.

Descriptive: a few validation sentences of one run. A flat picture must be seen to be flat, hence the permutation test;
and a flat picture over all layers may hide that two of them pull apart, hence the same by layer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.format import percent, probability
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.statistics import bootstrap, holm, permutation_test
from layerroute.lab.table import Cell, Field, Row, Table, cells, figures, interval, plain, words
from layerroute.outcomes import SIGNIFICANT

Floats = NDArray[np.float64]

RESAMPLES = 2000
FEWEST_SENTENCES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class KindRate:
    """Share of decisions for the expensive path (over tokens and sites) of one kind of token.

    Attributes:
        tokens: how many there are of the kind.
        low, high: ends of the 95 % bootstrap interval over sentences; None where fewer than three hold the kind.
        by_layer: (3, L) the same share, low and high by layer, over the sites of one that has several; NaN for None.
    """

    kind: str
    tokens: int
    rate: float
    low: float | None
    high: float | None
    by_layer: Floats


@dataclass(frozen=True, kw_only=True)
class TokenKinds:
    """One cut of the tokens (kind, loss, …): all kinds, most expensive first, and whether they differ.

    Attributes:
        p_value: of the hypothesis that kind and path have nothing in common: a permutation test within sentences; None
            where it was not tested.
        layers: names of the L layers with sites; empty for fewer than two.
        layer_p_values: the same hypothesis at each of them, corrected for their number (Holm).
    """

    kinds: tuple[KindRate, ...]
    p_value: float | None
    sentences: int
    tokens: int
    layers: tuple[str, ...]
    layer_p_values: tuple[float | None, ...]

    @property
    def differ(self) -> bool:
        """Whether the data show that kinds of tokens are routed differently (p < 0.05)."""
        return self.p_value is not None and self.p_value < SIGNIFICANT

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


@lru_cache(maxsize=16)
def token_groups(routes: TokenRoutes, *, seed: int = 0) -> Mapping[str, TokenKinds]:
    """By name of the cut: kind of token, and, where the run noted them, corpus frequency, loss and place in context.

    ``rare`` is the fifth of these tokens that the training text holds most seldom, ``high loss`` the fifth that the
    model predicted worst; the others are told beside them. Places are not tested: all tokens of a sentence share one.
    The resampling draws from ``seed``, so that the same routes give the same numbers.
    """
    decisions = [row for _, choice, _ in routes.sentences for row in choice]
    if not decisions or not routes.sites:
        return {}
    expensive = np.array(decisions) == len(routes.paths) - 1
    sentence = np.array([index for index, (tokens, _, _) in enumerate(routes.sentences) for _ in tokens])
    names = [site.partition(".")[0] for site in routes.sites]
    layers = tuple(dict.fromkeys(names))
    by_layer = [expensive[:, [name == layer for name in names]].mean(axis=1) for layer in layers]
    rates = np.stack([expensive.mean(axis=1), *by_layer], axis=1)
    return {
        cut: _compare(labels, layers, sentence, rates, seed=seed, test=cut not in UNTESTED)
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


def _compare(
    labels: Sequence[str],
    layers: tuple[str, ...],
    sentence: NDArray[np.int64],
    rates: Floats,
    *,
    seed: int,
    test: bool,
) -> TokenKinds:
    """One cut: ``rates`` is (tokens, 1 + layers), over all sites and then by layer."""
    names = sorted(set(labels))
    kind = np.array([names.index(label) for label in labels])
    member = (kind == np.arange(len(names))[:, None]).astype(np.float64)
    sentences, columns = len(np.unique(sentence)), rates.shape[1]
    generator = np.random.default_rng(seed)
    low, high = np.full((2, len(names), columns), np.nan)
    p_values: list[float | None] = [None] * columns
    if sentences >= FEWEST_SENTENCES:
        within = (sentence == np.arange(sentence.max() + 1)[:, None]).astype(np.float64)
        counts = member @ within.T
        sums = (member[:, None] * rates.T) @ within.T
        ends = bootstrap(
            sums,
            np.broadcast_to(counts[:, None], sums.shape),
            statistic=_shares,
            draws=RESAMPLES,
            generator=generator,
        )
        # A kind that is in very few sentences has no honest interval: most of its resamples are alike.
        enough = (counts > 0).sum(axis=1) >= FEWEST_SENTENCES
        low[enough], high[enough] = np.clip(ends[:, enough], 0.0, 1.0)
        if test and len(names) > 1:
            # So many draws that the smallest p of a layer outlives the correction.
            draws = max(RESAMPLES, 40 * len(layers))
            p_values = permutation_test(rates, kind, sentence, draws=draws, generator=generator).tolist()
    mean = member @ rates / member.sum(axis=1)[:, None]
    found = np.stack([mean, low, high])
    kinds = (
        KindRate(
            kind=names[index],
            tokens=labels.count(names[index]),
            rate=float(mean[index, 0]),
            low=None if np.isnan(low[index, 0]) else float(low[index, 0]),
            high=None if np.isnan(high[index, 0]) else float(high[index, 0]),
            by_layer=found[:, index, 1:],
        )
        for index in sorted(range(len(names)), key=lambda index: -mean[index, 0])
    )
    return TokenKinds(
        kinds=tuple(kinds),
        p_value=p_values[0],
        sentences=sentences,
        tokens=len(rates),
        layers=layers if len(layers) > 1 else (),
        layer_p_values=tuple(holm(p_values[1:])),
    )


def _shares(sums: Floats, counts: Floats, axis: int) -> Floats:
    amounts = counts.sum(axis=axis)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(amounts > 0, sums.sum(axis=axis) / amounts, np.nan)
    return found


def groups_table(groups: Mapping[str, TokenKinds], expensive: str) -> Table | None:
    """All cuts in one table; None where there is none."""
    if not groups:
        return None
    first = next(iter(groups.values()))
    tests = [
        f"{cut}: {'not tested' if group.p_value is None else group.p_text}" for cut, group in groups.items()
    ]
    return Table.of(
        "Table of token kinds",
        f"Share of decisions for {expensive} by kind of token",
        [
            words("By", lambda pair: pair[0]),
            words("Tokens that are", lambda pair: pair[1].kind),
            figures("Tokens", lambda pair: pair[1].tokens, plain),
            figures(f"{expensive} share", lambda pair: pair[1].rate, percent),
            cells(
                "95% interval", lambda pair: Cell(interval(pair[1].low, pair[1].high, percent), pair[1].low)
            ),
        ],
        [(cut, kind) for cut, group in groups.items() for kind in group.kinds],
        notes=[
            f"{first.tokens} tokens of {first.sentences} validation sentences, one run; bootstrap over sentences. "
            f"Permutation tests against decisions shuffled within each sentence: {'; '.join(tests)}."
        ],
    )


def arms_table(groups: Mapping[str, Mapping[str, TokenKinds]], expensive: str) -> Table | None:
    """All cuts of every arm side by side, with the tests below; None where there are not two arms.

    Args:
        groups: what ``token_groups`` finds, by arm.
    """
    if len(groups) < 2:
        return None
    rows = dict.fromkeys(
        (cut, one.kind) for found in groups.values() for cut, group in found.items() for one in group.kinds
    )

    def column(arm: str) -> Field[tuple[str, str]]:
        shares = {(cut, one.kind): one.rate for cut, group in groups[arm].items() for one in group.kinds}
        return figures(arm, shares.get, percent)

    tests = [
        _test_row(cut, [found[cut].p_value if cut in found else None for found in groups.values()])
        for cut in dict.fromkeys(cut for cut, _ in rows)
    ]
    return Table.of(
        "Table of token kinds by arm",
        f"Share of decisions for {expensive} by kind of token, every arm",
        [words("By", itemgetter(0)), words("Tokens that are", itemgetter(1)), *map(column, groups)],
        rows,
        more=filter(None, tests),
        notes=[
            "One run of each arm, on its own validation sentences. p of permutation tests against decisions shuffled "
            "within each sentence; not corrected for the number of arms."
        ],
    )


def layers_table(groups: Mapping[str, TokenKinds], expensive: str) -> Table | None:
    """Kinds by layers, with the test of each layer below; None where there are not two layers."""
    layers = next((group.layers for group in groups.values()), ())
    if not layers:
        return None

    def share(at: int, layer: str) -> Field[tuple[str, KindRate]]:
        return figures(
            layer.replace("layer", "L"),
            lambda item: float(item[1].by_layer[0, at]),
            lambda rate: percent(rate, 0),
        )

    tests = (_test_row(cut, group.layer_p_values, Cell("")) for cut, group in groups.items())
    return Table.of(
        "Table of token kinds by layer",
        f"Share of decisions for {expensive}",
        [
            words("By", lambda item: item[0]),
            words("Tokens that are", lambda item: item[1].kind),
            figures("Tokens", lambda item: item[1].tokens, plain),
            *(share(at, layer) for at, layer in enumerate(layers)),
        ],
        [(cut, kind) for cut, group in groups.items() for kind in group.kinds],
        more=filter(None, tests),
        notes=[
            "p of permutation tests against decisions shuffled within each sentence, corrected for the number of "
            "layers (Holm). Intervals are in the figure's data."
        ],
    )


def _test_row(cut: str, p_values: Sequence[float | None], *blank: Cell) -> Row | None:
    """The p values of one cut below the shares; None where none was tested."""
    if all(p is None for p in p_values):
        return None
    tests = (Cell(probability(p), p) for p in p_values)
    return Row(cells=(Cell(cut), Cell("p"), *blank, *tests), kind="reference")
