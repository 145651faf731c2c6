"""Analytic FLOPs against those that PyTorch counts."""

import pytest
import torch

from layerroute.ops.flops import flop_counter
from layerroute.routing import RoutingConfig
from layerroute.skipping import executed, forced, get_router, skip_flops
from layerroute.skipping.flops import layer_flops, path_costs
from layerroute.skipping.skip_config import layer_and_unit
from tests.parity.contracts import tokens
from tests.parity.skipping_models import VOCABULARY, routed

UNITS = [
    ("block", "project"),
    ("block", "evict"),
    ("attention", "project"),
    ("mlp", "project"),
    ("attention+mlp", "evict"),
]


def count(model, ids, execution, choice) -> float:
    with (
        torch.no_grad(),
        executed(model, execution),
        forced(model, choice),
        flop_counter() as counter,
    ):
        model(ids, use_cache=False)
    return counter.get_total_flops() / ids.numel()


CASES = [
    *(("llama", unit, kv, granularity) for unit, kv in UNITS for granularity in ("token", "per_layer")),
    *((family, unit, "project", "token") for family in ("qwen3_moe", "qwen3_next") for unit, _ in UNITS[::2]),
]


@pytest.mark.parametrize(("family", "unit", "kv", "granularity"), CASES)
def test_analytic_equals_counted_within_two_percent(family, unit, kv, granularity):
    size = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = routed(family, model=size, unit=unit, kv=kv, granularity=granularity)
    if "moe" in family or "next" in family:
        model.set_experts_implementation("eager")  # the counter knows no grouped products
    ids = tokens(2, 400, VOCABULARY)
    sites = len(get_router(model).sites)
    flops = skip_flops(model.config, get_router(model).config, 400)
    generator = torch.Generator().manual_seed(0)
    for rate in (0.25, 0.5, 0.75):
        # Exactly that share of each row and site, spread at random.
        order = torch.rand(2, 400, sites, generator=generator).argsort(dim=1).argsort(dim=1)
        choice = (order < rate * 400).long()
        counted = count(model, ids, "sparse", choice)
        assert counted == pytest.approx(flops.sparse_per_token([rate] * sites), rel=0.02)
        assert count(model, ids, "masked", choice) == pytest.approx(flops.forward_per_token, rel=0.02)
    everyone = torch.ones(2, 400, sites, dtype=torch.long)
    if kv == "project":
        assert count(model, ids, "sparse", everyone) == pytest.approx(
            flops.sparse_per_token([1.0] * sites), rel=0.02
        )
    nobody = torch.zeros(2, 400, sites, dtype=torch.long)
    assert count(model, ids, "sparse", nobody) == pytest.approx(
        flops.sparse_per_token([0.0] * sites), rel=0.02
    )


@pytest.mark.parametrize("router", ["linear", "mlp"])
def test_routers_that_see_more_states_cost_more(router):
    model = routed("llama", granularity="per_layer", history=2, routing=RoutingConfig(router=router))
    weights = sum(
        layer.weight.numel() for one in get_router(model).all_routings() for layer in one.router.linears()
    )
    assert skip_flops(model.config, get_router(model).config, 400).router == 2 * weights


@pytest.mark.parametrize("unit", ["block", "mlp"])
def test_a_site_that_too_few_tokens_skip_is_counted_as_auto_executes_it(unit):
    size = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = routed("llama", model=size, unit=unit)
    ids, config = tokens(2, 400, VOCABULARY), get_router(model).config
    least, sites = 0.2, len(get_router(model).sites)
    config.profitability.prefill = least
    rates = [1 - least / 2, 1.0, *[0.5] * (sites - 2)]
    order = (
        torch.rand(2, 400, sites, generator=torch.Generator().manual_seed(0)).argsort(dim=1).argsort(dim=1)
    )
    choice = (order < torch.tensor(rates) * 400).long()
    flops = skip_flops(model.config, config, 400)
    more = flops.sparse_per_token(rates, least=least) - flops.sparse_per_token(rates)
    counted = count(model, ids, "auto", choice) - count(model, ids, "sparse", choice)
    assert more > 0 and counted == pytest.approx(more, rel=0.05)


@pytest.mark.parametrize("unit", ["block", "attention"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_counted_evenly_a_token_that_skips_saves_what_it_saves_where_all_skip(unit, rate):
    """Of queries, scores and MLP. Key prefixes that blocks read are a credit that whole layers do not get."""
    model = routed("llama", unit=unit)
    flops = skip_flops(model.config, get_router(model).config, 400)
    site = get_router(model).sites[0]
    layer = flops.layers[layer_and_unit(site)[0]]
    alone = layer.queries + layer.scores + (layer.mlp if unit == "block" else 0.0) - flops.skip_path
    assert flops.saved(site, 0.0, evenly=True) == pytest.approx(alone + layer.keys)
    assert flops.saved(site, rate, evenly=True) == pytest.approx((1 - rate) * alone)
    assert flops.saved(site, rate) > flops.saved(site, rate, evenly=True)


def test_costs_of_decisions_are_those_of_the_layer():
    model = routed("llama", skip_path="identity")
    config = get_router(model).config
    layer = layer_flops(model.config, 1024)
    assert path_costs(model.config, config) == [[layer.keys, layer.total]] * 4
    from layerroute.skipping import last_decision

    with torch.no_grad(), forced(model, 0.5):
        model(tokens(2, 40, VOCABULARY))
    decision = last_decision(model)
    assert torch.allclose(decision.costs[:, 1], torch.tensor(layer.total))
    assert decision.cost_weighted_rate() == pytest.approx(float(decision.mean_rate()), rel=1e-5)


def test_controls_need_no_router_flops():
    learned = routed("llama")
    control = routed("llama", routing=RoutingConfig(control="random", rate=0.5))
    assert skip_flops(learned.config, get_router(learned).config, 64).router > 0
    assert skip_flops(control.config, get_router(control).config, 64).router == 0
