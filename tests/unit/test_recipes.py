"""Every shipped recipe is loaded and built; what their names promise is checked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from layerroute.hybrid import HybridConfig, HybridForCausalLM, forward_flops, sparse_flops_per_token
from layerroute.recipe import Recipe, load_recipe, shipped_folder, shipped_recipes
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from layerroute.training.hybrid import model_config, resolved_recipe
from tests.tiny import figures_of

GPT2 = 50257
NAMES = [name for name in shipped_recipes() if name.startswith("attention_routing/")]


def vocabulary(recipe: Recipe) -> int:
    return GPT2 if recipe.data.tokenizer == "gpt2" else recipe.data.vocabulary_size


def figures(name: str) -> Any:
    recipe = load_recipe(f"attention_routing/{name}")
    length = recipe.data.sequence_length
    return figures_of(recipe.model, vocabulary_size=vocabulary(recipe), context_length=length)


def test_all_that_is_promised_is_shipped() -> None:
    arms = {"baseline", "baseline_matched", "dynamic", "dynamic_strong_balance"}
    more = {
        "all_gdn",
        "all_softmax",
        "random",
        "periodic",
        "sequential",
        "per_head",
        "own_context",
        "dynamic_budget",
        "static_flops",
    }
    controls = {"all_gdn", "all_softmax", "random", "periodic", "dynamic_budget", "static_flops"}
    full = {f"full/{arm}" for arm in arms | controls}
    assert {*arms, *more, *full, "demo/static", "demo/dynamic"} <= {
        name.removeprefix("attention_routing/") for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_its_model_and_reads_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    config = model_config(recipe.model, vocabulary(recipe), end_of_text=0)
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e5
    assert recipe.name == Path(name).name
    assert recipe.train.batch_size % recipe.train.gradient_accumulation == 0
    import yaml

    again = tmp_path / f"{recipe.name}.yaml"
    again.write_text(yaml.safe_dump(resolved_recipe(recipe)))
    assert resolved_recipe(load_recipe(again)) == resolved_recipe(recipe)


@pytest.mark.parametrize("folder", ["", "full/"])
def test_the_matched_baseline_has_the_parameters_of_dynamic(folder: str) -> None:
    dynamic, matched, plain = (
        figures(f"{folder}{name}") for name in ("dynamic", "baseline_matched", "baseline")
    )
    assert matched.total == pytest.approx(dynamic.total, rel=0.01)
    assert dynamic.total > 1.02 * plain.total  # otherwise there would be nothing to match
    assert matched.flops.routed_layers == plain.flops.routed_layers == 0


@pytest.mark.parametrize("folder", ["", "full/"])
def test_static_flops_costs_what_the_router_executes(folder: str) -> None:
    def config_of(name: str) -> tuple[HybridConfig, int]:
        recipe = load_recipe(f"attention_routing/{folder}{name}")
        config = model_config(recipe.model, vocabulary(recipe), end_of_text=0)
        return config, recipe.data.sequence_length

    config, length = config_of("dynamic_budget")
    executed = sparse_flops_per_token(config, length, config.routing["rate"])
    static, _ = config_of("static_flops")
    assert static.layer_pattern == ["gdn", "gdn", "gdn", "softmax"]
    assert forward_flops(static, length).forward_per_token == pytest.approx(executed, rel=0.02)
    plain = forward_flops(config_of("baseline")[0], length).forward_per_token
    assert plain < 0.97 * executed, "otherwise the original arm would do"


@pytest.mark.parametrize("name", ["arms", "full/arms"])
def test_the_studies_of_text_hold_every_arm_of_a_claim_to_one_rule(name: str) -> None:
    plan = Plan(load_study(f"attention_routing/{name}"))
    assert {
        "baseline", "dynamic", "random", "periodic", "static_flops", "baseline_matched", "all_softmax", "all_gdn",
    } <= set(plan.variants)  # fmt: skip
    assert len(plan.config.seeds) >= 3 and plan.config.tune is not None
    recipes = {
        arm: resolved_recipe(plan.recipe(arm, 1, {"train.learning_rate": 1e-3})) for arm in plan.variants
    }
    for section in ("train", "data"):
        assert all(recipe[section] == recipes["baseline"][section] for recipe in recipes.values()), section
    rates = {arm: recipes[arm]["model"]["routing"]["rate"] for arm in ("dynamic", "random", "periodic")}
    assert set(rates.values()) == {0.25}
    assert (
        recipes["dynamic"]["objective"]["balance_weight"]
        == recipes["random"]["objective"]["balance_weight"]
        == 0
    )


@pytest.mark.parametrize("name", ["context_4k", "context_8k", "context_16k", "tasks", "large"])
def test_the_studies_of_length_tasks_and_size_are_fair_at_their_scale(name: str) -> None:
    plan = Plan(load_study(f"attention_routing/full/{name}"))
    recipes = {arm: plan.recipe(arm, 1, {}) for arm in plan.variants}
    costs, parameters = {}, {}
    for arm in ("dynamic", "static_flops", "baseline_matched"):
        recipe = recipes[arm]
        length = recipe.data.sequence_length
        config = model_config(recipe.model, GPT2, end_of_text=0)
        costs[arm] = sparse_flops_per_token(config, length, 0.25)
        parameters[arm] = figures_of(recipe.model, vocabulary_size=GPT2, context_length=length).total
    assert costs["static_flops"] == pytest.approx(costs["dynamic"], rel=0.02)
    assert parameters["baseline_matched"] == pytest.approx(parameters["dynamic"], rel=0.01)
    assert recipes["dynamic"].model["routing"]["rate"] == 0.25
    plain = {arm: resolved_recipe(recipe) for arm, recipe in recipes.items()}
    for section in ("train", "data"):
        own = [{**each[section], "learning_rate": None} for each in plain.values()]
        assert all(each == own[0] for each in own), section
    train, data = recipes["dynamic"].train, recipes["dynamic"].data
    tokens = train.batch_size * data.sequence_length
    assert tokens == (1 << 19 if name == "large" else 49152)
    if name.startswith("context"):
        assert data.sequence_length == 1024 * int(name.removeprefix("context_").removesuffix("k"))
    if name == "large":
        assert min(parameters.values()) > 1.2e9
    if name == "tasks":
        assert len(data.kinds) == 5 and all(kind.dataset for kind in data.kinds.values())


@pytest.mark.parametrize("name", ["full/baseline", "full/dynamic", "full/dynamic_strong_balance"])
def test_the_full_scale_is_that_of_the_original(name: str) -> None:
    recipe = load_recipe(f"attention_routing/{name}")
    plain = resolved_recipe(recipe)
    model, train = plain["model"], plain["train"]
    assert (model["hidden_size"], model["num_attention_heads"], model["mlp_ratio"]) == (768, 12, 4)
    dynamic = "dynamic" in name
    middle = ["routed", "routed"] if dynamic else ["gdn", "gdn"]
    assert model["layer_pattern"] == ["gdn", *middle, "softmax"]
    assert (recipe.data.sequence_length, recipe.data.tokenizer, recipe.data.validation_share) == (
        1024,
        "gpt2",
        0.1,
    )
    assert (train["batch_size"], train["max_steps"], recipe.seed) == (48, 1000, 42)
    assert train["learning_rate"] == (2e-3 if dynamic else 1e-3)
    assert train["warmup_share"] * train["max_steps"] == 100
    alpha = {"full/baseline": 0.0, "full/dynamic": 0.01, "full/dynamic_strong_balance": 0.05}[name]
    assert recipe.objective.balance_weight == alpha
    temperature = recipe.objective.temperature
    assert (temperature.start, temperature.end, temperature.begin, temperature.finish) == (1.0, 0.5, 0.0, 1.0)


def test_arms_of_one_folder_differ_in_model_and_objective_alone() -> None:
    for folder in ("", "demo/"):
        names = [n for n in NAMES if n.removeprefix(f"attention_routing/{folder}").count("/") == 0]
        sections = [resolved_recipe(load_recipe(name)) for name in names]
        assert len(sections) >= 2
        for section in ("train", "data", "seed"):
            assert all(each[section] == sections[0][section] for each in sections), (folder, section)


def test_controls_and_variants_are_what_their_names_say() -> None:
    def model(name: str) -> dict:
        return resolved_recipe(load_recipe(f"attention_routing/{name}"))["model"]

    assert model("random")["routing"]["control"] == "random"
    assert model("periodic")["routing"]["control"] == "periodic"
    assert model("random")["routing"]["rate"] == model("periodic")["routing"]["rate"] == 0.5
    assert set(model("all_gdn")["layer_pattern"]) == {"gdn"}
    assert set(model("all_softmax")["layer_pattern"]) == {"softmax"}
    assert model("sequential")["router_mode"] == "sequential"
    assert model("per_head")["granularity"] == "head"
    assert model("own_context")["context"] == "own_context"
    budget = model("dynamic_budget")["routing"]
    assert (budget["budget"], budget["estimator"]) == ("quantile", "sigmoid_st")
    assert model("dynamic")["routing"]["estimator"] == "gumbel_st"
    assert model("dynamic")["router_mode"] == "parallel"


def test_the_quick_validation_is_one_override() -> None:
    file = shipped_folder() / "attention_routing" / "dynamic.yaml"
    recipe = load_recipe(file, {"train.max_steps": "29"})
    assert recipe.train.max_steps == 29
