"""Copied tokens: which arms a learned router is held against, and what is said of the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention.words import words
from layerroute.capabilities.copies.question import QUESTION, losses, window_losses
from layerroute.lab.at_cost import by_kind
from layerroute.lab.claims import briefly, claims
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.pairs import Pair
from layerroute.lab.runs import Run
from layerroute.lab.statistics import WindowLosses
from layerroute.outcomes import Outcome
from tests.unit.lab.record_factory import record

TOKENS = [4, 0, 12, *[8] * 9]
"""Copied tokens by window."""


def part(loss: float, tokens: list[int]) -> dict[str, Any]:
    each = [loss + 0.01 * (-1) ** place if count else None for place, count in enumerate(tokens)]
    known = [(mean or 0.0) * count for mean, count in zip(each, tokens, strict=True)]
    return {
        "loss": sum(known) / sum(tokens),
        "tokens": sum(tokens),
        "window_losses": each,
        "window_tokens": tokens,
    }


def run(
    arm: str, seed: int, copied: float, *, executed: float = 2e6, read: float = 40e3, **settings: Any
) -> Run:
    content = record(arm, seed, loss=3.0, executed=executed, **settings)
    content["cache"] = {"read_per_token": read, "keys_values": read, "state": 0.0, "context_length": 128}
    content["copies"] = {
        "length": 4,
        "beyond": 160,
        "within": "sequence",
        "copied": part(copied, TOKENS),
        "rest": part(2.0, [90] * len(TOKENS)),
    }
    content["recipe"]["data"] = {"copies": {"length": 4, "beyond": 160}}
    return Run(content, Path(f"{arm}-{seed}/record.json"))


def study(seeds: tuple[int, ...] = (1, 2, 3), **changed: float) -> Comparison:
    """A router at 25 % and its rivals by their loss on copied tokens; ``changed`` are laid over."""
    routed: dict[str, Any] = {"pattern": ["gdn", "routed"], "rates": {"layer1.mixer": 0.25}}
    rivals: dict[str, tuple[float, dict[str, Any]]] = {
        "dynamic": (1.0, routed),
        "random": (1.4, {**routed, "control": "random"}),
        "periodic": (1.0, {**routed, "control": "periodic"}),
        "window": (1.5, {"pattern": ["gdn", "window"]}),
        "narrow": (0.8, {"pattern": ["gdn", "gdn", "gdn", "softmax"], "executed": 2.005e6}),
        "all_softmax": (0.5, {"pattern": ["softmax"] * 2, "executed": 4e6, "read": 160e3}),
        "all_gdn": (1.8, {"pattern": ["gdn"] * 2, "executed": 1e6, "read": 10e3}),
    }
    return compare_runs(
        [
            run(arm, seed, changed.get(arm, loss) + 0.005 * ((seed + len(arm)) % 3 - 1), **settings)
            for seed in seeds
            for arm, (loss, settings) in rivals.items()
        ]
    )


def by_rival(comparison: Comparison) -> dict[str, Pair]:
    return {pair.rival.label: pair for pair in claims(QUESTION, comparison.arms)}


def test_the_router_is_held_against_every_rival_at_equal_cost() -> None:
    comparison = study()
    found = by_rival(comparison)
    assert {name: pair.roles for name, pair in found.items()} == {
        "random": ("random at its rate",),
        "periodic": ("periodic at its rate",),
        "narrow": ("static at its FLOPs",),
        "window": ("a window at its cost",),
        "all_softmax": ("all-softmax",),
        "all_gdn": ("all-GDN",),
    }
    assert {name: pair.word.partition(":")[0] for name, pair in found.items()} == {
        "random": "copies better",
        "periodic": "cannot be told",
        "narrow": "copies worse",
        "window": "copies better",
        "all_softmax": "no verdict",
        "all_gdn": "no verdict",
    }
    difference = found["random"].difference
    assert difference is not None and difference.windows == len(TOKENS)
    assert difference.mean == pytest.approx(-0.4, abs=0.01)
    assert {one.rival.label: one.word for one in by_kind(QUESTION, comparison.arms)} == {
        "random": "copies better",
        "periodic": "cannot be told",
        "window": "copies better",
        "narrow": "copies worse",
    }


def test_what_windows_add_is_the_loss_by_token() -> None:
    (arm, *_) = study().arms
    for seed, loss in losses(arm).items():
        shares: WindowLosses = window_losses(arm)
        assert sum(shares[seed]) / len(TOKENS) == pytest.approx(loss)
        assert shares[seed][1] == 0.0, "a window without a copied token adds nothing"


def test_it_is_said_in_words_and_shown_in_tables() -> None:
    comparison = study()
    (sentence,) = comparison.answers_beside
    assert sentence in comparison.verdict
    for text in (
        "Copied tokens: dynamic, with softmax for 25.0% of the tokens after the first layer, has a loss of 1.0",
        "copies better than random (−0.4",
        "copies worse than narrow (+0.2",
        "Not held against softmax where it routes: no such arm.",
    ):
        assert text in sentence
    assert QUESTION.brief(comparison) == "it copies better than random and window and worse than narrow"
    rivals = [pair for pair in claims(QUESTION, comparison.arms) if pair.rival.label == "periodic"]
    for pairs, named in (
        (rivals, "periodic"),
        (rivals * 2, "periodic or periodic"),
        (rivals * 4, "any of 4 arms"),
    ):
        assert briefly(pairs, "copies", {}, "there") == f"there it cannot be told from {named}"
    costly = replace(rivals[0])
    costly.__dict__["outcome"] = Outcome.UNEQUAL_COST
    assert briefly([costly], "copies", {}, "there") == "there there is no verdict against periodic"
    assert briefly([*rivals, costly], "copies", {}, "there") == "there it cannot be told from periodic"
    assert "apart on tokens that are copied" in str(words(comparison, None))
    table = comparison.tables["copies"]
    assert {row.cells[0].text for row in table.rows} == {arm.label for arm in comparison.arms}
    assert "88 of 1.17 k predicted tokens are copied" in table.notes[0]
    assert "seeds and windows of text" in comparison.tables["copies_differences"].notes[0]
    assert len(comparison.tables["copies_at_cost"].rows) == 4


def test_where_softmax_does_not_copy_nobody_can_tell() -> None:
    assert "cannot tell who copies" not in study().verdict
    (sentence,) = study(all_softmax=1.8).answers_beside
    assert sentence.endswith(
        " all_softmax is not shown to copy better than all_gdn: these runs cannot tell who copies."
    )


def test_one_seed_claims_nothing() -> None:
    assert {pair.word.partition(":")[0] for pair in by_rival(study(seeds=(1,))).values()} == {
        "one seed",
        "no verdict",
    }


def test_other_rules_are_other_measures() -> None:
    comparison = study()
    for one in next(arm for arm in comparison.arms if arm.label == "random").runs:
        one.record["recipe"]["data"]["copies"]["beyond"] = 16
    assert by_rival(comparison)["random"].word == "no verdict: distances of copied tokens 160 against 16"


def test_without_copies_there_is_no_such_table() -> None:
    comparison = compare_runs([Run(record("baseline", 1), Path("a/record.json"))])
    assert "copies" not in comparison.tables and comparison.answers_beside == []
