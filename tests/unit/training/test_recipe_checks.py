"""Settings of one section that do nothing, or something else, beside those of another."""

import pytest

from layerroute.errors import UserError
from layerroute.recipe import load_recipe, shipped_recipes
from layerroute.training.hybrid import resolved_recipe
from layerroute.training.recipe_checks import check_recipe

HELD = "nothing holds it: set model.routing.budget"
TOGETHER = "reinforce and objective.policy_weight go together"


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_shipped_recipes_fit_together(name):
    check_recipe(load_recipe(name))


@pytest.mark.parametrize(
    ("name", "overrides", "told"),
    [
        ("attention_routing/dynamic", {"model.routing.rate": "0.25"}, HELD),
        (
            "attention_routing/recall/dynamic",
            {"model.routing.surrogate": "asked", "objective.rate.start": "null"},
            "routing.surrogate: asked is for a rate that a schedule leads to",
        ),
        ("attention_routing/dynamic", {"objective.rate.start": "1.0"}, HELD),
        ("attention_routing/dynamic", {"model.routing.estimator": "reinforce"}, "has not; use gumbel_st"),
        (
            "attention_routing/dynamic_budget",
            {"train.threshold_tokens": "0"},
            "objective.rate.start needs train.threshold_tokens",
        ),
        (
            "layer_skipping/token",
            {"objective.rate.start": "1.0", "train.threshold_tokens": "0"},
            "objective.rate.start needs train.threshold_tokens",
        ),
        ("layer_skipping/token", {"skip.routing.estimator": "reinforce"}, TOGETHER),
        ("layer_skipping/token_v2", {"objective.policy_weight": "1"}, TOGETHER),
        ("layer_skipping/reinforce", {"objective.policy_weight": "0"}, TOGETHER),
        ("layer_skipping/reinforce", {"start.method": "calibrated"}, "thresholds move them"),
        ("layer_skipping/reinforce", {"skip.routing.budget": "quantile"}, "thresholds move them"),
        ("layer_skipping/token", {"skip.routing.initial_bias": "1.0"}, "a calibration makes a linear router"),
        ("layer_skipping/token", {"skip.routing.zero_init": "true"}, "a calibration makes a linear router"),
        (
            "layer_skipping/token",
            {"objective.budget_weight": "8"},
            "objective.budget_weight holds the rate of prob",
        ),
        (
            "layer_skipping/token",
            {"objective.lagrangian_step": "1"},
            "objective.lagrangian_step holds the rate of",
        ),
        (
            "layer_skipping/token",
            {"objective.budgets": "[0.2, 0.4]", "objective.rate.start": "1.0"},
            "no effect with objective.budgets",
        ),
        ("layer_skipping/token_v2", {"objective.budgets": "[0.2, 0.4]"}, "that serves several budgets"),
        ("layer_skipping/static_greedy", {"objective.budgets": "[0.2, 0.4]"}, "that serves several budgets"),
        ("layer_skipping/token_v2", {"adapt.router_rate": "0"}, "makes a router that has learnt nothing"),
        (
            "layer_skipping/token",
            {"adapt.lora_rank": "0", "adapt.router_rate": "0", "adapt.skip_rate": "0"},
            "nothing is trained",
        ),
    ],
    ids=str,
)
def test_what_would_be_ignored_is_refused(name, overrides, told):
    with pytest.raises(UserError) as error:
        check_recipe(load_recipe(name, overrides))
    assert told in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.routing.budget": "quantile"},
        {"objective.budget_weight": "1"},
        {"model.serve": "rate"},
        {"model.routing.control": "random"},
    ],
    ids=str,
)
def test_a_rate_is_taken_where_something_holds_it(overrides):
    check_recipe(load_recipe("attention_routing/dynamic", {"model.routing.rate": "0.25"} | overrides))


def places(tree, path=()):
    """Every setting, and every section, below the top."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


COMPLETE = {
    name: resolved_recipe(load_recipe(name)) for name in ("attention_routing/dynamic", "layer_skipping/token")
}


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, tree in COMPLETE.items() for place in places(tree) if place[1:]],
)
def test_null_at_any_place_is_a_default_or_refused(name, place):
    try:
        recipe = load_recipe(name, {".".join(place): "null"})
        check_recipe(recipe)
    except UserError:
        return
    assert resolved_recipe(recipe)["name"] == COMPLETE[name]["name"]


def test_the_default_pattern_is_routed_too():
    """It is checked like one that the recipe spells out."""
    with pytest.raises(UserError, match="nothing holds it"):
        check_recipe(
            load_recipe(
                "attention_routing/dynamic", {"model.layer_pattern": "null", "model.routing.rate": "0.25"}
            )
        )
