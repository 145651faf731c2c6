"""The arms of the recall study match what their names promise."""

from __future__ import annotations

from typing import Any

import pytest

from layerroute.data.recall.configuration import FIRST_KEY
from layerroute.hybrid.flops import forward_flops, sparse_flops_per_token
from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.hybrid.reading import bytes_read
from layerroute.lab.fairness import SAME_BYTES
from layerroute.outcomes import SAME_COST
from layerroute.recipe import load_recipe
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from layerroute.training.hybrid import model_config
from tests.tiny import figures_of


def arm(name: str) -> tuple[Any, HybridConfig, Any]:
    recipe = load_recipe(f"attention_routing/recall/{name}")
    assert recipe.data.recall is not None
    size = recipe.data.recall.vocabulary_size
    config = model_config(recipe.model, size, end_of_text=0)
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


HARD, COPIES = (Plan(load_study(f"attention_routing/{name}")) for name in ("recall_hard", "copies"))
CONTEXT = 1024


def test_choice_against_chance_is_asked_in_the_hard_study() -> None:
    """Its arms are those of the whole study, but for the learning rate, which is chosen there."""
    choice = Plan(load_study("attention_routing/recall_hard_choice"))
    assert list(choice.variants) == ["dynamic", "random"]
    for name in choice.variants:
        assert choice.recipe(name, 1, {}) == HARD.recipe(name, 1, {"train.learning_rate": 6e-3})


def test_static_rivals_are_those_of_the_hard_study() -> None:
    """But for the schedule of the rate, which nothing reads where nothing is routed."""
    static = Plan(load_study("attention_routing/recall_hard_static"))
    assert list(static.variants) == ["static_3to1", "window"]
    for name in static.variants:
        own, whole = (
            plan.recipe(name, 1, {"train.learning_rate": 6e-3}).sections | {"objective": None}
            for plan in (static, HARD)
        )
        assert own == whole and "routed" not in own["model"]["layer_pattern"]


def costs(name: str, plan: Plan = HARD) -> tuple[float, float]:
    """FLOPs that an arm of a study of long sequences executes, and bytes that it reads, a token."""
    recipe = plan.recipe(name, 1, {})
    length = recipe.data.sequence_length
    config = model_config(recipe.model, (recipe.data.recall or recipe.data).vocabulary_size, end_of_text=0)
    if not config.routed_layers:
        return forward_flops(config, length).forward_per_token, bytes_read(config, length).per_token
    rate = config.routing_config.rate
    return sparse_flops_per_token(config, length, rate), bytes_read(config, length, rate=rate).per_token


@pytest.mark.parametrize("more", ["", "_more"])
@pytest.mark.parametrize("rival", ["random", "periodic", "window", "gdn_state", "static_3to1", "static_7to1"])
def test_each_rival_of_the_hard_study_has_both_costs_of_a_router(rival: str, more: str) -> None:
    flops, read = costs(f"{rival}{more}")
    at_rate = costs(f"random{more}")
    assert flops == pytest.approx(at_rate[0], rel=SAME_COST)
    assert read == pytest.approx(at_rate[1], rel=SAME_BYTES)


def test_an_eighth_of_twice_the_tokens_costs_as_much_and_so_does_its_rival() -> None:
    eighth = Plan(load_study("attention_routing/recall_hard_eighth"))
    flops, read = costs("dynamic", eighth)
    for name, plan in (("dynamic", HARD), ("dynamic_asked", eighth), ("static_3to1", eighth)):
        assert costs(name, plan) == (
            pytest.approx(flops, rel=SAME_COST),
            pytest.approx(read, rel=SAME_BYTES),
        )


@pytest.mark.parametrize("rival", ["random", "periodic", "window", "gdn_state", "static_3to1"])
def test_each_rival_of_the_copies_study_has_both_costs_of_its_router(rival: str) -> None:
    flops, read = costs(rival, COPIES)
    router = costs("dynamic", COPIES)
    assert flops == pytest.approx(router[0], rel=SAME_COST)
    assert read == pytest.approx(router[1], rel=0.01)


def test_the_copies_study_marks_what_its_window_does_not_see_and_trains_all_arms_alike() -> None:
    rival = COPIES.recipe("dynamic", 1, {})
    assert rival.data.copies is not None and rival.data.recall is None
    assert rival.data.copies.beyond >= COPIES.recipe("window", 1, {}).model["window"]
    assert COPIES.config.gate is not None and COPIES.config.gate.metric == "copies.margin"
    assert rival.model["serve"] == "rate" and len(COPIES.config.seeds) >= 3 and COPIES.config.tune is not None
    for name in COPIES.variants:
        recipe = COPIES.recipe(name, 1, {})
        assert recipe.data == rival.data and recipe.train == rival.train, name
        trial = COPIES.recipe(name, COPIES.config.tune.seeds[0], COPIES.config.tune.overrides)
        assert trial.data.split_seed != recipe.data.split_seed, "what is tuned on is not reported"


def test_the_hard_study_has_costs_on_both_sides_of_a_router_wherever_it_looks() -> None:
    recipe = HARD.recipe("dynamic", 1, {})
    assert costs("dynamic")[0] == pytest.approx(costs("random")[0], rel=SAME_COST), (
        "its router costs next to nothing"
    )
    late = CONTEXT - recipe.model["routing"]["rate"] * CONTEXT / 2  # keys that the last quarter sees
    more = HARD.recipe("random_more", 1, {}).model["routing"]["rate"]
    assert recipe.model["routing"]["rate"] * late <= more * CONTEXT / 2


def test_the_hard_task_is_beyond_the_state_of_a_layer_and_judged_by_its_gate() -> None:
    config, gate = HARD.config, HARD.config.gate
    assert gate is not None and config.tune is not None
    bounds = {one.arm: (one.least, one.most) for one in gate.conditions}
    assert bounds == {"all_softmax": (0.99, None), "all_gdn": (None, 0.40), "random": (None, 0.50)}
    assert len(config.seeds) == 8 and len(config.tune.seeds) >= 2
    rival = HARD.recipe("dynamic", 1, {})
    for name in HARD.variants:
        recipe = HARD.recipe(name, 1, {})
        task = recipe.data.recall
        assert task is not None and recipe.data == rival.data and recipe.train == rival.train, name
        assert min(task.keys, task.values) >= 512 and recipe.data.sequence_length >= 1024
        assert 0.4 <= (task.noise or 0) <= 0.8 and task.asked(CONTEXT) > 0
        trial = HARD.recipe(name, config.tune.seeds[0], config.tune.overrides)
        assert trial.data.split_seed != recipe.data.split_seed, "what is tuned on is not reported"
    state = HARD.recipe("all_gdn", 1, {}).model
    assert rival.data.recall is not None
    assert rival.data.recall.pairs >= 4 * state["num_attention_heads"] * state["head_dim"]
    assert HARD.recipe("random", 1, {}).model["routing"]["rate"] == rival.model["routing"]["rate"]
    oracle = HARD.recipe("oracle", 1, {}).model["routing"]
    assert oracle["control_tokens"] == [FIRST_KEY, FIRST_KEY + rival.data.recall.keys]


def test_the_oracle_of_the_small_task_knows_its_keys() -> None:
    recipe = load_recipe("attention_routing/recall/oracle")
    assert recipe.data.recall is not None
    assert recipe.model["routing"]["control_tokens"] == [FIRST_KEY, FIRST_KEY + recipe.data.recall.keys]


def test_the_published_settings_have_the_published_vocabulary() -> None:
    plan = Plan(load_study("attention_routing/recall_published"))
    task = plan.recipe("dynamic", 1, {}).data.recall
    assert task is not None and task.vocabulary_size == 8192 and task.pairs == 64
    for length, pairs in ((64, 4), (128, 8), (256, 16)):
        recipe = plan.recipe("dynamic", 1, {"data.sequence_length": length, "data.recall.pairs": pairs})
        assert recipe.data.recall is not None and recipe.data.recall.least_length() <= length


def test_all_arms_train_alike_and_choose_from_one_grid() -> None:
    for study in ("recall", "recall_variants"):
        plan = Plan(load_study(f"attention_routing/{study}"))
        assert plan.config.tune is not None and len(plan.config.seeds) >= 3
        for name in plan.variants:
            recipe, rival = plan.recipe(name, 1, {}), load_recipe("attention_routing/recall/static")
            assert recipe.data == rival.data, name
            assert recipe.train == rival.train, name
