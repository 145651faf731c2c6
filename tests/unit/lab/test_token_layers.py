"""Kinds of tokens by layer: what layers do against each other is found, and nothing is claimed of chance."""

from __future__ import annotations

import numpy as np
import pytest

from layerroute.lab.runs import TokenFacts, TokenRoutes
from layerroute.lab.tokens import TokenKinds, layers_table, token_groups

SITES = ("layer1.mixer", "layer2.mixer", "layer5.mixer")


def routes(
    wanted: dict[str, tuple[float, ...]], sites: tuple[str, ...] = SITES, sentences: int = 12, seed: int = 0
) -> TokenRoutes:
    """Sentences of the tokens in ``wanted``, each expensive at each site with the probability given there."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(sentences):
        tokens = tuple(generator.choice(list(wanted), size=24).tolist())
        choice = tuple(tuple(int(generator.random() < p) for p in wanted[token]) for token in tokens)
        made.append((tokens, choice, tuple((0.5,) * len(sites) for _ in tokens)))
    facts = tuple(TokenFacts(start=0, losses=(1.0,) * 24, seen=None) for _ in made)
    return TokenRoutes(sites=sites, paths=("gdn", "softmax"), sentences=tuple(made), facts=facts)


def kinds_by_layer(found: TokenRoutes) -> dict[str, TokenKinds]:
    return {cut: group for cut, group in token_groups(found).items() if group.layers}


def shares(found: TokenKinds) -> dict[str, np.ndarray]:
    """Rate, low and high by layer of each kind."""
    return {kind.kind: kind.by_layer for kind in found.kinds}


OPPOSED = {" word": (0.1, 0.9, 0.5), ",": (0.9, 0.1, 0.5)}


def test_layers_that_pull_apart_are_seen_where_the_mean_over_them_is_flat() -> None:
    opposed = routes(OPPOSED)
    pooled = {kind.kind: kind.rate for kind in token_groups(opposed)["kind"].kinds}
    assert abs(pooled["punctuation"] - pooled["word start"]) < 0.06
    found = kinds_by_layer(opposed)["kind"]
    assert found.layers == ("layer1", "layer2", "layer5")
    assert shares(found)["punctuation"][0] == pytest.approx([0.9, 0.1, 0.5], abs=0.1)
    assert shares(found)["word start"][0] == pytest.approx([0.1, 0.9, 0.5], abs=0.1)
    first, second, third = found.layer_p_values
    assert first is not None and second is not None and third is not None
    assert first < 0.01 and second < 0.01 and third > 0.05
    for rate, low, high in shares(found).values():
        assert (low < rate).all() and (rate < high).all()
        assert (high - low < 0.25).all()


def test_chance_is_not_claimed_though_there_are_many_layers() -> None:
    sites = tuple(f"layer{n}.block" for n in range(30))
    claims = 0
    for seed in range(4):
        flat = routes({" word": (0.5,) * 30, ",": (0.5,) * 30}, sites, seed=seed)
        claims += any(p is not None and p < 0.05 for p in kinds_by_layer(flat)["kind"].layer_p_values)
    assert claims <= 1, "uncorrected, all but a few of four studies would claim something"


def test_sites_of_one_layer_count_as_one_and_one_layer_has_no_table() -> None:
    heads = ("layer1.head0", "layer1.head1", "layer2.head0", "layer2.head1")
    found = kinds_by_layer(routes({" a": (1.0, 0.0, 1.0, 1.0)}, heads))["kind"]
    assert found.layers == ("layer1", "layer2")
    assert [kind.by_layer[0].tolist() for kind in found.kinds] == [[0.5, 1.0]]
    assert kinds_by_layer(routes({" a": (1.0,)}, ("layer1.mixer",))) == {}
    assert layers_table({}, "softmax") is None


def test_places_are_not_tested_and_few_sentences_have_no_interval() -> None:
    found = kinds_by_layer(routes(OPPOSED))
    assert set(found) == {"kind", "loss", "place in context"}
    assert set(found["place in context"].layer_p_values) == {None}
    few = kinds_by_layer(routes(OPPOSED, sentences=2))["kind"]
    assert set(few.layer_p_values) == {None}
    assert all(np.isnan(ends).all() for _, *ends in shares(few).values())


def test_the_table_has_a_row_a_kind_and_the_tests_below() -> None:
    table = layers_table(token_groups(routes(OPPOSED)), "softmax")
    assert table is not None
    assert [column.label for column in table.columns][3:] == ["L1", "L2", "L5"]
    kinds = {row.cells[1].text: [cell.value for cell in row.cells[3:]] for row in table.rows}
    assert kinds["punctuation"] == pytest.approx([0.9, 0.1, 0.5], abs=0.1)
    assert [row.kind for row in table.rows if row.cells[1].text == "p"] == ["reference"]


def test_same_routes_same_numbers() -> None:
    one, two = (kinds_by_layer(routes(OPPOSED))["kind"] for _ in range(2))
    assert one.layer_p_values == two.layer_p_values
    assert all((ends == shares(two)[kind]).all() for kind, ends in shares(one).items())
