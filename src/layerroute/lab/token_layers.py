"""The same kinds of tokens layer by layer: a flat picture over all layers may hide that two of them pull apart.

Descriptive, as `layerroute.lab.tokens`: a few validation sentences of one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.format import percent, probability
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.statistics import holm
from layerroute.lab.table import Cell, Column, Row, Table
from layerroute.lab.tokens import FEWEST_SENTENCES, RESAMPLES, UNTESTED, token_cuts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerKinds:
    """One cut of the tokens (kind, loss, …), K kinds by L layers.

    Attributes:
        kinds: names, most expensive first, over all layers.
        tokens: how many there are of each.
        rate: (K, L) share of decisions for the expensive path; over the sites of a layer, where it has several.
        low, high: (K, L) ends of the 95 % bootstrap interval over sentences; NaN for a kind that fewer than three
            sentences hold.
        p_values: by layer, of the hypothesis that the kind has nothing to do with the path there: a permutation test
            within sentences, corrected for the number of layers (Holm); None where it was not tested.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: tuple[int, ...]
    rate: Floats
    low: Floats
    high: Floats
    p_values: tuple[float | None, ...]


def kinds_by_layer(routes: TokenRoutes, *, seed: int = 0) -> dict[str, LayerKinds]:
    """By name of the cut, as in ``token_groups``; empty for no token, and for fewer than two layers with sites.

    The resampling draws from ``seed``, so that the same routes give the same numbers.
    """
    names = [site.partition(".")[0] for site in routes.sites]
    layers = tuple(dict.fromkeys(names))
    tokens = [row for _, choice, _ in routes.sentences for row in choice]
    if len(layers) < 2 or not tokens:
        return {}
    expensive = np.array(tokens) == len(routes.paths) - 1
    at = np.array([layers.index(name) for name in names])
    rates = np.stack([expensive[:, at == layer].mean(axis=1) for layer in range(len(layers))], axis=1)
    sentence = np.array([index for index, (words, _, _) in enumerate(routes.sentences) for _ in words])
    return {
        cut: _compare(labels, layers, sentence, rates, seed=seed, test=cut not in UNTESTED)
        for cut, labels in token_cuts(routes).items()
    }


def layers_table(found: Mapping[str, LayerKinds], expensive: str) -> Table | None:
    """Kinds by layers, with the test of each layer below; None where there is nothing to show."""
    if not found:
        return None
    layers = next(iter(found.values())).layers
    rows = []
    for cut, one in found.items():
        for kind, count, rates in zip(one.kinds, one.tokens, one.rate, strict=True):
            cells = [Cell(percent(float(rate), 0), float(rate)) for rate in rates]
            rows.append(Row(cells=(Cell(cut), Cell(kind), Cell(str(count), count), *cells)))
    for cut, one in found.items():
        if any(p is not None for p in one.p_values):
            cells = [Cell(probability(p), p) for p in one.p_values]
            rows.append(Row(cells=(Cell(cut), Cell("p"), Cell(""), *cells), kind="reference"))
    return Table(
        name="Table of token kinds by layer",
        title=f"Share of decisions for {expensive}",
        columns=(
            Column(label="By"),
            Column(label="Tokens that are"),
            Column(label="Tokens", numeric=True),
            *(Column(label=layer.replace("layer", "L"), numeric=True) for layer in layers),
        ),
        rows=tuple(rows),
        notes=(
            "p of permutation tests against decisions shuffled within each sentence, corrected for the number of "
            "layers (Holm). Intervals are in the figure's data.",
        ),
    )


def _compare(
    labels: list[str], layers: tuple[str, ...], sentence: Ints, rates: Floats, *, seed: int, test: bool
) -> LayerKinds:
    unordered = sorted(set(labels))
    pooled = {name: float(rates[[label == name for label in labels]].mean()) for name in unordered}
    names = sorted(unordered, key=lambda name: -pooled[name])
    member = np.array([[label == name for name in names] for label in labels], dtype=np.float64)
    counts = member.sum(axis=0)
    generator = np.random.default_rng(seed)
    enough = len(np.unique(sentence)) >= FEWEST_SENTENCES
    low, high = _bootstrap(member, sentence, rates, generator)
    p_values: list[float | None] = [None] * len(layers)
    if enough and test and len(names) > 1:
        p_values = holm(list(_permutation(member, sentence, rates, generator)))
    return LayerKinds(
        layers=layers,
        kinds=tuple(names),
        tokens=tuple(int(count) for count in counts),
        rate=member.T @ rates / counts[:, None],
        low=low,
        high=high,
        p_values=tuple(p_values),
    )


def _bootstrap(
    member: Floats, sentence: Ints, rates: Floats, generator: np.random.Generator
) -> tuple[Floats, Floats]:
    kinds, layers, number = member.shape[1], rates.shape[1], int(sentence.max()) + 1
    within = (sentence == np.arange(number)[:, None]).astype(np.float64)
    counts = within @ member
    sums = np.stack([within @ (member * rates[:, layer : layer + 1]) for layer in range(layers)], axis=2)
    drawn = generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float64)
    amounts = drawn @ counts
    low, high = (np.full((kinds, layers), np.nan) for _ in range(2))
    for kind in range(kinds):
        # As in the pooled table: a kind of very few sentences has no honest interval.
        if (counts[:, kind] > 0).sum() >= FEWEST_SENTENCES:
            there = amounts[:, kind] > 0
            means = (drawn @ sums[:, kind])[there] / amounts[there, kind, None]
            low[kind], high[kind] = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def _permutation(
    member: Floats, sentence: Ints, rates: Floats, generator: np.random.Generator
) -> list[float]:
    counts, overall = member.sum(axis=0)[:, None], rates.mean(axis=0)

    def spread(values: Floats) -> Floats:
        found: Floats = (counts * (member.T @ values / counts - overall) ** 2).sum(axis=0)
        return found

    observed = spread(rates) - 1e-12
    # So many that the smallest p outlives the correction.
    times = max(RESAMPLES, 40 * rates.shape[1])
    reached = np.zeros(rates.shape[1])
    for _ in range(times):
        # Tokens stand sentence by sentence: sorted by sentence and then by chance, each stays in its own.
        order = np.lexsort((generator.random(len(sentence)), sentence))
        reached += spread(rates[order]) >= observed
    return [float(p) for p in (1 + reached) / (1 + times)]
