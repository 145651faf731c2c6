"""The arms of the recall study match what their names promise."""

from __future__ import annotations

from typing import Any

import pytest

from layerroute.hybrid.flops import forward_flops, sparse_flops_per_token
from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.recipe import load_recipe
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from layerroute.training.hybrid import ModelFigures, Vocabulary, model_config
from tests.tiny import figures_of


def arm(name: str) -> tuple[Any, HybridConfig, ModelFigures]:
    recipe = load_recipe(f"attention_routing/recall/{name}")
    assert recipe.data.recall is not None
    size = recipe.data.recall.vocabulary_size
    config = model_config(recipe.model, Vocabulary(size=size, end_of_text=0))
    length = recipe.data.sequence_length
    return recipe, config, figures_of(recipe.model, vocabulary_size=size, context_length=length)


@pytest.mark.parametrize("rate", [0.25, 0.125])
def test_the_narrow_static_arm_costs_what_dynamic_executes(rate: float) -> None:
    recipe, config, _ = arm("dynamic")
    length = recipe.data.sequence_length
    executed = sparse_flops_per_token(config, length, rate)
    narrow = arm("static_3to1_flops")[1]
    assert narrow.layer_pattern == ["gdn", "gdn", "gdn", "softmax"]
    assert forward_flops(narrow, length).forward_per_token == pytest.approx(executed, rel=0.02)
    # At the original width three GDN layers to one cost far more: without the narrow arm the claim would be empty.
    wide = forward_flops(arm("static_3to1")[1], length).forward_per_token
    assert wide > 1.5 * executed


def test_the_wide_static_arm_has_the_parameters_of_dynamic() -> None:
    assert arm("static_parameters")[2].total == pytest.approx(arm("dynamic")[2].total, rel=0.01)
    assert arm("static")[2].total < 0.95 * arm("dynamic")[2].total


def test_all_arms_train_alike_and_choose_from_one_grid() -> None:
    for study in ("recall", "recall_variants"):
        plan = Plan(load_study(f"attention_routing/{study}"))
        assert plan.config.tune is not None and len(plan.config.seeds) >= 3
        for name in plan.variants:
            recipe, rival = plan.recipe(name, 1, {}), load_recipe("attention_routing/recall/static")
            assert recipe.data == rival.data, name
            assert recipe.train == rival.train, name
