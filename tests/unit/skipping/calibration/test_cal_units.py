"""Attention or MLPs alone: the calibration's own execution is the model's, and its routers are of that unit."""

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from layerroute.errors import UserError
from layerroute.skipping import executed, get_router, last_decision
from layerroute.skipping.calibration import (
    CONTROLS,
    CalibrationConfig,
    evaluate_arms,
    fit_arms,
    install,
    install_for_budgets,
    installed,
)
from layerroute.skipping.calibration.calibrate import applicable
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.fits import fit_skip
from layerroute.skipping.calibration.headroom import headroom
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay, step
from layerroute.skipping.calibration.moments import regular
from layerroute.skipping.calibration.stack import LayerStack
from layerroute.skipping.model import remove_router
from tests.parity.skipping_models import FAMILIES, plain
from tests.unit.skipping.calibration.tiny_calibration import LAYERS, LENGTH, config, ids

UNITS = ["attention", "mlp"]
OUTPUT = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
"""What a unit's update comes out of."""


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_layer_are_the_layer(family, unit):
    model = plain(family)
    stack, whole = LayerStack(model, LENGTH, unit=unit), LayerStack(model, LENGTH)
    states = stack.embed(ids(3))
    for layer in range(len(stack.layers)):
        given = stack.before(layer, states)
        made = stack.through(layer, given)
        assert not torch.allclose(made, given) and (given is states) == (unit == "attention")
        after = stack.after(layer, made)
        assert (after is made) == (unit == "mlp")
        states = whole.run(layer, states)
        torch.testing.assert_close(after, states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_a_family_that_is_not_described_is_refused_and_its_blocks_are_not(unit):
    tiny = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7, "num_attention_heads": 4}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=61, max_position_embeddings=64, **tiny))
    with pytest.raises(UserError, match=f"unit {unit}: 'gpt_neox' is not a family .* only unit block"):
        fit_arms(model, config(unit=unit), statistics=ids(1), selection=ids(1))
    assert len(LayerStack(model, LENGTH).layers) == 7


@pytest.mark.parametrize("target", ["update", "dense"])
@pytest.mark.parametrize("granularity", ["per_layer", "token"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_policy_installed_gives_the_logits_of_its_replay(family, unit, granularity, target):
    model, asked = plain(family), config(unit=unit, granularity=granularity, target=target)
    stack = LayerStack(model, LENGTH, unit=unit)
    rates = {2: 0.3, 3: 0.5, 4: 1.0, 5: 0.0}
    policy = calibrate_in_order(stack, ids(8), rates, asked)
    text = ids(4, seed=1)
    states, features, skips = stack.embed(text), None, []
    for layer in range(len(stack.layers)):
        features = states if layer == policy.router_layer else features
        states, skipped = step(stack, policy, layer, states, features, text)
        skips += [skipped] if layer in rates else []
    expected = stack.logits(states, text)
    with installed(model, policy, asked.skip_config(7)), torch.no_grad():
        assert get_router(model).sites == tuple(f"layer{layer}.{unit}" for layer in LAYERS)
        with executed(model, "masked"):
            masked = model(text).logits
        decided = last_decision(model).choice == 0
        with executed(model, "sparse"):
            sparse = model(text).logits
    assert torch.equal(decided, torch.stack(skips, dim=-1))
    assert decided[..., 2].float().mean() == pytest.approx(1 - 1 / LENGTH) and not decided[..., 3].any()
    assert 0.1 < decided[..., 1].float().mean() < 0.9
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sparse, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, model(text).logits, atol=0.1)


@pytest.mark.parametrize("unit", UNITS)
def test_a_skip_path_is_fitted_to_what_the_unit_adds(unit):
    """With the target `update` and nothing skipped below, it is the regression of the unit's update on its input."""
    model, asked = plain(), config(unit=unit, rank=32)
    stack = LayerStack(model, LENGTH, unit=unit)
    text = ids(40)
    policy = calibrate_in_order(stack, text, dict.fromkeys(LAYERS, 0.0), asked, fit_all=True)
    states = stack.embed(text)
    for layer in range(LAYERS[0]):
        states = stack.run(layer, states)
    given = stack.before(2, states)
    made = stack.through(2, given)
    block = stack.run(2, states)
    missed = float((made - policy.sites[2].skip(given))[:, 1:].square().mean())
    assert missed < 0.9 * float((made - given)[:, 1:].square().mean())
    assert missed < float((block - policy.sites[2].skip(states))[:, 1:].square().mean())
    cosine = torch.nn.functional.cosine_similarity(given, made, dim=-1)[:, 1:]
    assert policy.sites[2].influence == pytest.approx(float(1 - cosine.mean()), rel=1e-3)


@pytest.mark.parametrize("target", ["update", "dense"])
@pytest.mark.parametrize("unit", UNITS)
def test_later_layers_are_fitted_to_what_those_below_leave(unit, target):
    """On the states that skipping below produces; towards those of the full model where these are the target."""
    model, asked = plain(), config(unit=unit, target=target)
    stack = LayerStack(model, LENGTH, unit=unit)
    text = ids(16)
    policy = calibrate_in_order(stack, text, dict.fromkeys(LAYERS, 1.0), asked)
    states = full = stack.embed(text)
    inner = ~policy.sinks(text)
    for layer in range(LAYERS[-1] + 1):
        if layer in LAYERS:
            given = stack.before(layer, states)
            reached = stack.through(layer, stack.before(layer, full) if target == "dense" else given)
            rows = regular(given[inner]) & regular(reached[inner])
            expected = fit_skip(
                given[inner][rows], reached[inner][rows], rank=asked.rank, strength=asked.ridge
            )
            torch.testing.assert_close(policy.sites[layer].skip(given), expected(given), rtol=1e-3, atol=1e-3)
        states, full = step(stack, policy, layer, states, None, text)[0], stack.run(layer, full)


@pytest.mark.parametrize("unit", ["block", *UNITS])
def test_the_cost_of_a_unit_is_what_reversing_it_changes(unit):
    model, asked = plain(), config(unit=unit)
    stack = LayerStack(model, LENGTH, unit=unit)
    policy = calibrate_in_order(stack, ids(8), {2: 0.0, 3: 0.5, 4: 1.0, 5: 0.25}, asked, fit_all=True)
    search = Search.of(stack, ids(4, seed=2))
    costs, base = measure_costs(stack, search, policy)

    def divergence(rates):
        other = policy.with_rates({**policy.rates(), **rates})
        return search.divergence(stack, replay(stack, other, search.embedded, search.ids))[:, 1:].flatten()

    assert base == pytest.approx(float(divergence({}).mean()), rel=1e-4)
    for layer in (2, 4):
        expected = divergence({layer: 1.0}) - divergence({layer: 0.0})
        torch.testing.assert_close(costs[layer].cost, expected, rtol=1e-3, atol=1e-4)
    assert costs[3].cost.shape == costs[3].score.shape == (4 * (LENGTH - 1),)
    states = search.embedded
    for layer in range(2):
        states = stack.run(layer, states)
    given = stack.before(2, states)
    made = stack.through(2, given)
    missed = (made - policy.sites[2].skip(given)).square().sum(-1) / made.square().sum(-1)
    torch.testing.assert_close(costs[2].influence, missed[:, 1:].flatten().log(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_that_does_nothing_is_the_one_that_goes(unit):
    """Its own layer's other half matters as before, so that a calibration of blocks would not find it."""
    model = plain()
    with torch.no_grad():
        model.get_submodule(f"model.layers.4.{OUTPUT[unit]}").weight.zero_()
    before = model(ids(2)).logits
    asked = config(unit=unit, budget=0.25, also=[0.5], allocation="cost")
    found = fit_arms(model, asked, statistics=ids(24), selection=ids(8, seed=3), controls=CONTROLS)
    assert torch.equal(model(ids(2)).logits, before)
    own = {name: layers for name, layers in found.static.items() if not name.startswith("block")}
    assert own == {"influence": (4,), "greedy": (4,)}
    assert found.policy.sites[4].rate == 1.0 and found.skip.unit == unit
    scores = evaluate_arms(model, found, ids(8, seed=4))
    assert list(scores) == ["dense", "routed", *applicable(CONTROLS, unit)]
    for name in ("routed", "static_influence", "static_greedy"):
        assert scores[name].loss == pytest.approx(scores["dense"].loss, abs=2e-3)
        assert scores[name].skipped == pytest.approx(0.25 * (1 - 1 / LENGTH), abs=1e-3)
        assert scores[name].skipped_by_layer[4] == pytest.approx(1 - 1 / LENGTH)
    for name in ("random", "periodic", "early_exit"):
        assert (scores[name].losses - scores["dense"].losses).abs().mean() > 0.02
        assert scores[name].skipped == pytest.approx(0.25, abs=0.06)
    controls = {"random": "random", "periodic": "periodic", "early_exit": None}
    for name, policy in found.arms.items():
        router = get_router(install(model, policy, found.skip))
        assert router.config.unit == ("block" if "block" in name else unit)
        assert router.config.routing.control == controls.get(name, "static"), name
        remove_router(model)
    router = get_router(install_for_budgets(model, found, ids(24)))
    for budget in (0.25, 0.5):
        router.set_budget(budget)
        model(ids(24))
        assert 1 - last_decision(model).mean_rate() == pytest.approx(budget, abs=0.02)


@pytest.mark.parametrize("unit", UNITS)
def test_headroom_of_a_unit_is_about_that_unit(unit):
    model = plain()
    with torch.no_grad():
        for layer in LAYERS:
            model.get_submodule(f"model.layers.{layer}.{OUTPUT[unit]}").weight.zero_()
    asked = config(unit=unit)
    dense, rows = headroom(model, asked, statistics=ids(8), selection=ids(8, seed=1), budgets=(0.5,))
    assert rows[0].influence.loss == pytest.approx(dense, abs=2e-3), "units that do nothing cost nothing"
    assert rows[0].random.loss == pytest.approx(dense, abs=2e-3)
    _, others = headroom(
        model,
        config(unit=UNITS[unit == "attention"]),
        statistics=ids(8),
        selection=ids(8, seed=1),
        budgets=(0.5,),
    )
    assert abs(others[0].random.loss - dense) > 0.02
    for arm in (rows[0].influence, *rows[0].static, rows[0].random):
        assert arm.executed is not None and arm.loss == pytest.approx(np.mean(arm.window_losses), abs=1e-5)
    static = sorted(rows[0].static, key=lambda arm: arm.skipped)
    assert static[0].executed > rows[0].influence.executed > static[-1].executed, (
        "neighbours to read off between"
    )


def test_units_that_are_not_calibrated_are_refused():
    with pytest.raises(UserError, match="unit: 'attention\\+mlp' is not known"):
        CalibrationConfig(budget=0.25, unit="attention+mlp")


def test_the_empty_policy_is_the_model_whatever_the_unit():
    model = plain("gemma2")
    for unit in UNITS:
        stack = LayerStack(model, LENGTH, unit=unit)
        states = replay(stack, Policy(), stack.embed(ids(3)), ids(3))
        torch.testing.assert_close(stack.logits(states, ids(3)), model(ids(3)).logits, rtol=1e-4, atol=1e-4)
