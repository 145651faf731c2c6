"""Parts of layers: the calibration's own execution is the model's, and its routers are of that unit."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from layerroute.errors import UserError
from layerroute.ops.flops import flop_counter
from layerroute.skipping import executed, get_router, last_decision, skip_flops
from layerroute.skipping.calibration import (
    CONTROLS,
    CalibrationConfig,
    configure,
    evaluate_arms,
    fit_arms,
    install,
    install_for_budgets,
    installed,
    score,
)
from layerroute.skipping.calibration.allocation import even_rates
from layerroute.skipping.calibration.calibrate import applicable
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.fits import SkipFit, influence
from layerroute.skipping.calibration.headroom import headroom
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay, skipped_by, step
from layerroute.skipping.calibration.moments import regular
from layerroute.skipping.calibration.stack import LayerStack
from layerroute.skipping.model import remove_router
from tests.parity.skipping_models import FAMILIES, plain
from tests.unit.skipping.calibration.tiny_calibration import LAYERS, LENGTH, config, ids

UNITS = ["attention", "mlp"]
BOTH = "attention+mlp"
OUTPUT = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
"""What a unit's update comes out of."""


def at(layer, unit):
    """The place of a layer's unit, the last of two."""
    return 2 * layer + 1 if unit == BOTH else layer


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_halves_of_a_layer_are_the_layer(family):
    model = plain(family)
    stack, whole = LayerStack(model, LENGTH, unit=BOTH), LayerStack(model, LENGTH)
    states = stack.embed(ids(3))
    for layer in range(len(stack.layers)):
        inner = stack.run(2 * layer, states)
        assert not torch.allclose(inner, states)
        out, states = stack.run(2 * layer + 1, inner), whole.run(layer, states)
        assert not torch.allclose(inner, states)
        torch.testing.assert_close(out, states, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("unit", [*UNITS, BOTH])
def test_a_family_that_is_not_described_is_refused_and_its_blocks_are_not(unit):
    tiny = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7, "num_attention_heads": 4}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=61, max_position_embeddings=64, **tiny))
    with pytest.raises(
        UserError, match=f"unit {re.escape(unit)}: 'gpt_neox' is not a family .* only unit block"
    ):
        fit_arms(model, config(unit=unit), statistics=ids(1), selection=ids(1))
    assert len(LayerStack(model, LENGTH).layers) == 7


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({}, "cost"),
        ({"allocation": "even"}, "even"),
        ({"granularity": "sequence"}, "even"),
        ({"granularity": "sequence", "allocation": "search"}, "search"),
    ],
)
def test_where_whole_layers_must_skip_the_allocation_asked_for_stays(asked, made, monkeypatch):
    class Words(list):
        all_special_ids = (0,)

    monkeypatch.setattr(configure, "family_of", lambda model, layers: None)
    found = configure.config_for(plain(), Words("abc"), budget=0.5, tokens_heldout=512, refits=3, **asked)
    assert (found.unit, found.allocation, found.refits, found.sink_ids) == ("block", made, 3, [0])
    found = configure.config_for(plain(), Words("abc"), budget=0.5, tokens_heldout=512, sink_ids=[4])
    assert found.sink_ids == [4]


def test_one_layer_alone_is_told_for_what_it_is():
    with pytest.raises(UserError, match="one layer alone may be skipped"):
        configure.check_budget(0.5, 1, "mlp")


@pytest.mark.parametrize("unit", ["block", "mlp", BOTH])
def test_the_early_exit_reads_below_layers_that_are_lower_than_the_router_layer(unit):
    model, asked = plain(), config(unit=unit, layers=[1, 2, 3], router_layer=4)
    found = fit_arms(model, asked, statistics=ids(8), selection=ids(4, seed=3), controls=["early_exit"])
    assert found.arms["early_exit"].router_layer == 1
    assert evaluate_arms(model, found, ids(4, seed=1))["early_exit"].skipped == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("target", ["update", "dense"])
@pytest.mark.parametrize(
    "asked",
    [
        {"granularity": "per_layer"},
        {"granularity": "token"},
        {"granularity": "per_layer", "history": 2, "skip_path": "non_linear"},
    ],
    ids=["per_layer", "token", "history"],
)
@pytest.mark.parametrize(
    ("family", "unit"), [*(("llama", unit) for unit in (*UNITS, BOTH)), ("gemma2", BOTH)]
)
def test_a_policy_installed_gives_the_logits_of_its_replay(family, unit, asked, target):
    """Of two halves both are decided from the layer's input, whatever the first one does to the state."""
    model, asked = plain(family), config(unit=unit, target=target, **asked)
    stack, skip = LayerStack(model, LENGTH, unit=unit), asked.skip_config(7)
    shares = [0.3, 0.5, 1.0, 0.0] if unit in UNITS else [0.3, 0.3, 0.5, 0.5, 1.0, 0.4, 0.0, 0.6]
    rates = dict(zip(skip.places(), shares, strict=True))
    policy = calibrate_in_order(stack, ids(8), rates, asked)
    text = ids(4, seed=1)
    states, features, skips = stack.embed(text), None, []
    for place in range(stack.depth):
        states, features, skipped = step(stack, policy, place, states, features, text)
        skips += [skipped] if place in rates else []
    expected = stack.logits(states, text)
    with installed(model, policy, skip), torch.no_grad():
        assert get_router(model).sites == tuple(
            f"layer{layer}.{part}" for layer in LAYERS for part in unit.split("+")
        )
        with executed(model, "masked"):
            masked = model(text).logits
        decided = last_decision(model).choice == 0
        with executed(model, "sparse"), flop_counter() as counter:
            sparse = model(text).logits
        served = 1 - decided.float().mean(dim=(0, 1))
        judged = score(model, text)
    assert torch.equal(decided, torch.stack(skips, dim=-1))
    everyone, nobody = shares.index(1.0), shares.index(0.0)
    assert 1 - served[everyone] == pytest.approx(1 - 1 / LENGTH) and served[nobody] == 1
    assert 0.1 < served[shares.index(0.5)] < 0.9
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sparse, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, model(text).logits, atol=0.1)
    assert judged.loss == pytest.approx(float(stack.losses(states, text).mean()), abs=1e-4)
    assert judged.skipped == pytest.approx(float(1 - served.mean()), abs=1e-6)
    flops = skip_flops(model.config, replace(skip, granularity=asked.granularity), LENGTH)
    assert counter.get_total_flops() / text.numel() == pytest.approx(
        flops.sparse_per_token(served.tolist()), rel=0.02
    )


def test_a_layer_that_always_runs_is_no_gap_in_a_history():
    """The router above it sees the layer below it, in calibration as in the model."""
    model, asked = plain(), config(unit="mlp", history=1, layers=[2, 3, 5, 6])
    stack, skip, text = LayerStack(model, LENGTH, unit="mlp"), asked.skip_config(7), ids(4, seed=1)
    policy = calibrate_in_order(stack, ids(8), dict.fromkeys(skip.places(), 0.5), asked)
    older = policy.sites[5].predictor.weight[stack.hidden_size :]
    assert older.abs().max() > 1e-3
    states, features, skips = stack.embed(text), None, []
    for place in range(stack.depth):
        states, features, skipped = step(stack, policy, place, states, features, text)
        skips += [skipped] if place in policy.sites else []
    with installed(model, policy, skip), torch.no_grad():
        model(text)
        assert torch.equal(last_decision(model).choice == 0, torch.stack(skips, dim=-1))


def test_the_second_half_is_predicted_from_what_its_router_reads():
    """From the layer's input, not from the MLP's own input, which its skip path reads."""
    model, asked = plain(), config(unit=BOTH, rank=32)
    stack, text = LayerStack(model, LENGTH, unit=BOTH), ids(40)
    policy = calibrate_in_order(stack, text, {4: 0.5, 5: 0.5}, replace(asked, refits=0))
    states = stack.embed(text)
    for place in range(4):
        states = stack.run(place, states)
    inner = skipped_by(
        stack,
        policy.skips(4, states, lambda: states, text),
        policy.sites[4].skip,
        states,
        stack.run(4, states),
    )
    made, site = stack.run(5, inner), policy.sites[5]
    missed = influence(inner, made, site.skip, relative=asked.relative)[:, 1:].flatten()

    def told(read):
        return 1 - float((missed - site.predictor(read)[:, 1:].flatten()).var() / missed.var())

    assert told(states) == pytest.approx(site.predictor.r2, abs=1e-4)
    assert abs(told(inner) - told(states)) > 2e-3


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
            expected = SkipFit(
                given[inner][rows], reached[inner][rows], rank=asked.rank, strength=asked.ridge
            )()
            torch.testing.assert_close(policy.sites[layer].skip(given), expected(given), rtol=1e-3, atol=1e-3)
        states, full = step(stack, policy, layer, states, None, text)[0], stack.run(layer, full)


@pytest.mark.parametrize("unit", ["block", *UNITS, BOTH])
def test_the_cost_of_a_unit_is_what_reversing_it_changes(unit):
    model, asked = plain(), config(unit=unit)
    stack = LayerStack(model, LENGTH, unit=unit)
    first, half, every = at(2, unit), at(3, unit), at(4, unit)
    rates = dict.fromkeys(asked.skip_config(7).places(), 0.25) | {first: 0.0, half: 0.5, every: 1.0}
    policy = calibrate_in_order(stack, ids(8), rates, asked, fit_all=True)
    search = Search.of(stack, ids(4, seed=2))
    costs, base = measure_costs(stack, search, policy)

    def divergence(rates):
        other = policy.with_rates({**policy.rates(), **rates})
        return search.divergence(stack, replay(stack, other, search.embedded, search.ids))[:, 1:].flatten()

    assert base == pytest.approx(float(divergence({}).mean()), rel=1e-4)
    for place in (first, every):
        expected = divergence({place: 1.0}) - divergence({place: 0.0})
        torch.testing.assert_close(costs[place].cost, expected, rtol=1e-3, atol=1e-4)
    assert costs[half].cost.shape == costs[half].score.shape == (4 * (LENGTH - 1),)
    states, features = search.embedded, None
    for place in range(first):
        states, features, _ = step(stack, policy, place, states, features, search.ids)
    given = stack.before(first, states)
    made = stack.through(first, given)
    missed = (made - policy.sites[first].skip(given)).square().sum(-1) / made.square().sum(-1)
    torch.testing.assert_close(costs[first].influence, missed[:, 1:].flatten().log(), rtol=1e-3, atol=1e-3)
    read = states if features is None else features
    told = policy.sites[first].predictor(read)[:, 1:].flatten()
    torch.testing.assert_close(costs[first].score, told, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["attention", BOTH])
def test_the_unit_that_does_nothing_is_the_one_that_goes(unit):
    """Its own layer's other half matters as before, so that a calibration of blocks would not find it."""
    model, place, share = plain(), at(4, unit), 0.25 / len(unit.split("+"))
    with torch.no_grad():
        model.get_submodule(f"model.layers.4.{OUTPUT.get(unit, OUTPUT['mlp'])}").weight.zero_()
    before = model(ids(2)).logits
    asked = config(unit=unit, budget=share, also=[0.5], allocation="cost")
    found = fit_arms(model, asked, statistics=ids(24), selection=ids(8, seed=3), controls=CONTROLS)
    assert torch.equal(model(ids(2)).logits, before)
    own = {name: layers for name, layers in found.static.items() if not name.startswith("block")}
    assert own == {"influence": (place,), "greedy": (place,)}
    assert found.policy.sites[place].rate == 1.0 and found.skip.unit == unit
    scores = evaluate_arms(model, found, ids(8, seed=4))
    assert list(scores) == ["dense", "routed", *applicable(CONTROLS, unit)]
    for name in ("routed", "static_influence", "static_greedy"):
        assert scores[name].loss == pytest.approx(scores["dense"].loss, abs=2e-3)
        assert scores[name].skipped == pytest.approx(share * (1 - 1 / LENGTH), abs=1e-3)
        assert scores[name].skipped_by_layer[4] == pytest.approx(4 * share * (1 - 1 / LENGTH))
    for name in ("random", "periodic", "early_exit"):
        assert (scores[name].losses - scores["dense"].losses).abs().mean() > 0.02
        assert scores[name].skipped == pytest.approx(share, abs=0.06)
    controls = {"random": "random", "periodic": "periodic", "early_exit": None}
    for name, policy in found.arms.items():
        router = get_router(install(model, policy, found.skip))
        assert router.config.unit == ("block" if "block" in name else unit)
        assert router.config.routing.control == controls.get(name, "static"), name
        remove_router(model)
    router = get_router(install_for_budgets(model, found, ids(24)))
    for budget in (share, 0.5):
        router.set_budget(budget)
        model(ids(24))
        assert 1 - last_decision(model).mean_rate() == pytest.approx(budget, abs=0.02)


def test_headroom_is_not_judged_on_a_single_window():
    """It has no interval: every difference would be a certain one."""
    with pytest.raises(UserError, match="1 window of"):
        headroom(plain(), config(), statistics=ids(8), selection=ids(1), budgets=(0.5,))


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
    with pytest.raises(UserError, match="unit: 'mlp\\+attention' is not known"):
        CalibrationConfig(budget=0.25, unit="mlp+attention")


@pytest.mark.parametrize("budget", [0.05, 0.3, 0.8])
def test_attention_skips_less_often_than_the_mlp_beside_it_and_the_budget_is_the_mean(budget):
    skip = config(unit=BOTH).skip_config(7)
    rates = even_rates(skip, budget)
    attention, mlp = (set(list(rates.values())[half::2]) for half in (0, 1))
    assert tuple(rates) == skip.places() and len(attention) == len(mlp) == 1
    (low,), (high,) = attention, mlp
    assert 0 < low < high < 1 and (low + high) / 2 == pytest.approx(budget)
    assert set(even_rates(config(unit="mlp").skip_config(7), budget).values()) == {budget}


def test_the_empty_policy_is_the_model_whatever_the_unit():
    model = plain("gemma2")
    for unit in (*UNITS, BOTH):
        stack = LayerStack(model, LENGTH, unit=unit)
        states = replay(stack, Policy(), stack.embed(ids(3)), ids(3))
        torch.testing.assert_close(stack.logits(states, ids(3)), model(ids(3)).logits, rtol=1e-4, atol=1e-4)
