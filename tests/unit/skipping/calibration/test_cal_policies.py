"""The calibration's own execution is the model's: layer by layer, and under every policy."""

from dataclasses import replace

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping import SkipConfig, add_router, executed, last_decision
from layerroute.skipping.calibration import (
    controls,
    evaluate_arms,
    fit_arms,
    installed,
    paired_bootstrap,
)
from layerroute.skipping.calibration.costs import Search
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.result import result_sections
from layerroute.skipping.calibration.stack import FullDepth, LayerStack
from layerroute.skipping.skip_config import UNITS
from tests.parity.skipping_models import FAMILIES, plain
from tests.unit.skipping.calibration.tiny_calibration import LAYERS, LENGTH, config, ids


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_is_the_model(family):
    model = plain(family)
    before = model(ids(3)).logits
    stack = LayerStack(model, LENGTH)
    states = replay(stack, Policy(), stack.embed(ids(3)), ids(3))
    torch.testing.assert_close(stack.logits(states, ids(3)), before, rtol=1e-4, atol=1e-4)
    labels = model(ids(3), labels=ids(3)).loss
    torch.testing.assert_close(stack.losses(states, ids(3)).mean(), labels, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(ids(3)).logits, before), "the model is left as it was"


def test_divergence_is_kl_and_none_of_the_model_from_itself():
    model = plain()
    stack = LayerStack(model, LENGTH)
    search = Search.of(stack, ids(2))
    states = replay(stack, Policy(), search.embedded, ids(2))
    assert search.divergence(stack, states).abs().max() < 1e-5
    other = states + 0.3 * torch.randn_like(states)
    logs = [stack.logits(x, ids(2)).log_softmax(-1) for x in (other, states)]
    expected = torch.nn.functional.kl_div(*logs, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(search.divergence(stack, other), expected, rtol=1e-4, atol=1e-5)


def test_a_routed_model_is_refused():
    model = add_router(plain(), SkipConfig(layers=LAYERS, router_layer=2, rank=4))
    with pytest.raises(UserError, match="has a router already"):
        LayerStack(model, LENGTH)


@pytest.mark.parametrize("granularity", ["per_layer", "token", "sequence"])
@pytest.mark.parametrize("target", ["update", "dense"])
@pytest.mark.parametrize("chooser", ["predicted", "random"])
def test_a_policy_installed_gives_the_logits_of_its_replay(granularity, target, chooser):
    model, asked = plain(), config(granularity=granularity, target=target, sink_ids=[3, 9], prefix_tokens=5)
    stack = LayerStack(model, LENGTH)
    rates = {2: 0.0, 3: 0.5, 4: 1.0, 5: 0.25}
    if chooser == "random":
        rates = dict.fromkeys(LAYERS, 0.3)
    policy = calibrate_in_order(stack, ids(8), rates, asked, chooser=chooser)
    text = ids(4, seed=1)
    expected = (
        stack.logits(replay(stack, policy, stack.embed(text), text), text) if chooser != "random" else None
    )
    with installed(model, policy, asked.skip_config(7)), torch.no_grad():
        with executed(model, "masked"):
            masked = model(text).logits
        served = 1 - last_decision(model).rate()
        with executed(model, "sparse"):
            sparse = model(text).logits
    torch.testing.assert_close(sparse, masked, rtol=1e-4, atol=1e-4)
    if expected is not None:
        torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)
        sinks = float(policy.sinks(text).float().mean())
        assert sinks > 1 / LENGTH, "there are separators in the text"
        assert served[0] == 0 and served[2] == pytest.approx(1 - sinks)
    else:
        assert len(set(served.tolist())) > 1, "layers must not draw alike"


@pytest.mark.parametrize("granularity", ["per_layer", "token"])
def test_in_order_fits_serve_their_rates_where_they_were_fitted(granularity):
    model, asked = plain(), config(granularity=granularity)
    stack = LayerStack(model, LENGTH)
    rates = {2: 0.1, 3: 0.5, 4: 0.8, 5: 0.25}
    text = ids(16)
    policy = calibrate_in_order(stack, text, rates, asked)
    with installed(model, policy, asked.skip_config(7)), torch.no_grad():
        model(text)
        served = 1 - last_decision(model).rate()
    torch.testing.assert_close(served, torch.tensor(list(rates.values())), atol=0.003, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("granularity", ["per_layer", "token"])
@pytest.mark.parametrize("target", ["update", "dense"])
def test_arms_that_share_the_full_model_are_fitted_as_each_alone(unit, granularity, target, monkeypatch):
    """Of every arm the layers below its first that skips are computed once for all, and the fits are the same."""
    asked = config(unit=unit, granularity=granularity, target=target, rank=3)
    stack, text = LayerStack(plain(), LENGTH, unit=unit), ids(12)
    places = asked.skip_config(7).places()
    last, middle = places[-1], places[len(places) // 2]
    routed = dict.fromkeys(places, 0.4)
    arms = [
        ({**dict.fromkeys(places, 0.0), last: 1.0}, "predicted"),
        ({**dict.fromkeys(places, 0.0), middle: 1.0, last: 1.0}, "predicted"),
        (routed, "predicted"),
        ({**dict.fromkeys(places, 0.0), last: 0.5}, "predicted"),
        (routed, "random"),
        ({**dict.fromkeys(places, 0.0), last: 1.0}, "predicted"),
    ]
    alone = [calibrate_in_order(stack, text, rates, asked, chooser=chooser) for rates, chooser in arms]
    full, embedded = FullDepth(stack, text), []
    embed = stack.embed
    monkeypatch.setattr(stack, "embed", lambda ids: embedded.append(1) or embed(ids))
    shared = [
        calibrate_in_order(stack, text, rates, asked, chooser=chooser, full=full) for rates, chooser in arms
    ]
    assert len(embedded) == 3, (
        "anew only below the lowest that is kept: at first, in the middle, and at the bottom"
    )
    for mine, other in zip(shared, alone, strict=True):
        assert list(mine.sites) == list(other.sites) and mine.rates() == other.rates()
        for place, site in mine.sites.items():
            expected = other.sites[place]
            for part in ("mean", "down", "up", "bias"):
                assert torch.equal(getattr(site.skip, part), getattr(expected.skip, part)), (place, part)
            assert (site.predictor is None) == (expected.predictor is None)
            if site.predictor is not None:
                assert torch.equal(site.predictor.weight, expected.predictor.weight)
                assert site.predictor.threshold == expected.predictor.threshold


@pytest.mark.parametrize("unit", UNITS)
def test_the_full_model_is_the_model_at_every_layer(unit):
    stack, text = LayerStack(plain(), LENGTH, unit=unit), ids(3)
    full, inputs = FullDepth(stack, text), []
    replay(stack, Policy(), stack.embed(text), text, keep=inputs)
    for layer in (3, 6, 4, 0, 5, 3):
        expected = inputs[layer * len(stack.units)]
        torch.testing.assert_close(full.into(layer), expected, rtol=1e-5, atol=1e-5)


def test_a_prompt_decides_once_for_all_of_its_tokens_but_the_first():
    """So many sequences skip as were asked for; static pruning beside it waits for no prompt."""
    settings = {"granularity": "sequence", "prefix_tokens": 5, "precision": "fp32"}
    model, asked = plain(), config(**settings, unit="mlp", budget=0.5)
    text = ids(16)
    found = fit_arms(model, asked, statistics=text, selection=ids(8, seed=3), own=ids(0))
    with installed(model, found.policy, found.skip), torch.no_grad():
        model(text)
        decision = last_decision(model)
        other = torch.cat([text[:, :5], ids(16, seed=9)[:, 5:]], dim=1)
        model(other)
        assert torch.equal(last_decision(model).choice, decision.choice), "the first tokens decide"
    skips = decision.choice == 0
    assert not skips[:, :5].any() and torch.equal(skips[:, 5:], skips[:, 5:6].expand(-1, LENGTH - 5, -1))
    assert skips[:, 5].sum(dim=0).tolist() == [8] * 4 and len(skips[:, 5].unique(dim=0)) > 2
    scores = evaluate_arms(model, found, text)
    assert scores["routed"].skipped == pytest.approx(0.5 * (1 - 5 / LENGTH))
    assert result_sections(found, scores)["arms"]["routed"]["title"] == "routed per sequence"
    for name in ("static_influence", "static_greedy"):
        assert scores[name].skipped == pytest.approx(0.5 * (1 - 1 / LENGTH))


@pytest.fixture(scope="module")
def outcome():
    """A model whose layer 4 does nothing at all."""
    model = plain()
    with torch.no_grad():
        model.model.layers[4].self_attn.o_proj.weight.zero_()
        model.model.layers[4].mlp.down_proj.weight.zero_()
    before = model(ids(2)).logits
    calibration = fit_arms(
        model, config(budget=0.25, rounds=2, allocation="cost"), statistics=ids(24), selection=ids(8, seed=3)
    )
    assert torch.equal(model(ids(2)).logits, before)
    return model, calibration


def test_a_layer_that_does_nothing_is_the_one_that_goes(outcome):
    model, calibration = outcome
    assert set(calibration.static) == {"influence", "greedy", "block_influence", "block_greedy"}
    assert set(calibration.static.values()) == {(4,)}
    assert calibration.policy.sites[4].rate == 1.0
    scores = evaluate_arms(model, calibration, ids(8, seed=4))
    for name in ("routed", "static_influence", "static_greedy"):
        assert scores[name].loss == pytest.approx(scores["dense"].loss, abs=2e-3)
        assert scores[name].skipped == pytest.approx(0.25 * (1 - 1 / LENGTH), abs=1e-3)
    assert scores["dense"].skipped == 0
    assert (scores["random"].losses - scores["dense"].losses).abs().mean() > 0.02
    assert scores["random"].skipped == pytest.approx(0.25, abs=0.05)


def test_no_layer_is_skipped_by_fewer_tokens_than_asked_at_any_budget():
    settings = {"budget": 0.3, "also": [0.45], "allocation": "cost"}
    free = fit_arms(plain(), config(**settings, min_share=0.0), statistics=ids(24), selection=ids(8, seed=3))
    bound = fit_arms(plain(), config(**settings, min_share=0.4), statistics=ids(24), selection=ids(8, seed=3))

    def small(found):
        rates = [found.policy.rates(), found.rates[0.45]]
        return [rate for each in rates for rate in each.values() if 0 < rate < 0.4 - 1e-9]

    assert small(free) and not small(bound)
    assert sum(bound.policy.rates().values()) / 4 == pytest.approx(0.3)


def test_policies_that_need_an_oracle_cannot_be_installed(outcome):
    model, calibration = outcome
    with (
        pytest.raises(ValueError, match="oracle"),
        installed(model, replace(calibration.policy, chooser="oracle"), calibration.skip),
    ):
        pass


def test_the_paired_interval_covers_what_it_should():
    torch.manual_seed(0)
    noise = torch.randn(60)
    clear = paired_bootstrap(noise - 0.1, noise + 0.01 * torch.randn(60))
    assert clear.low < clear.mean < clear.high < -0.05
    covered = 0
    for seed in range(60):
        torch.manual_seed(seed)
        found = paired_bootstrap(torch.randn(40), torch.zeros(40), draws=500)
        covered += found.low <= 0 <= found.high
    assert 50 <= covered <= 60


@pytest.mark.parametrize(
    "asked", [{"allocation": "cost"}, {"granularity": "sequence", "allocation": "search", "prefix_tokens": 5}]
)
def test_what_greedy_pruning_takes_out_is_chosen_once_for_all_who_ask(asked, monkeypatch):
    chosen, choose = [], controls.greedy_static
    monkeypatch.setattr(controls, "greedy_static", lambda *args: chosen.append(args[4]) or choose(*args))
    found = fit_arms(
        plain(),
        config(**asked, budget=0.5),
        statistics=ids(16),
        selection=ids(8, seed=3),
        controls=("static_greedy",),
    )
    assert chosen == [2] and len(found.static["greedy"]) == 2
