import json
import math

import pytest
import torch

from layerroute.evaluation.routing_statistics import RoutingAccumulator
from layerroute.objectives import switch_loss
from layerroute.routing import RouteDecision


def decision(choice, *, p=0.5, valid=None, causal=True, sites=("a", "b")) -> RouteDecision:
    chosen = torch.tensor(choice)
    expensive = torch.full(chosen.shape, p)
    return RouteDecision(
        probabilities=torch.stack([1 - expensive, expensive], dim=-1),
        choice=chosen,
        valid=torch.ones(chosen.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid),
        sites=sites,
        paths=("gdn", "softmax"),
        costs=torch.tensor([[1.0, 3.0], [1.0, 2.0]]),
        gate=torch.nn.functional.one_hot(chosen, 2).float(),
        causal=causal,
    )


def test_rates_and_entropies_of_all_batches_together() -> None:
    accumulator = RoutingAccumulator()
    accumulator.add(decision([[[1, 0], [1, 0]]], p=0.9))
    accumulator.add(decision([[[1, 1], [0, 1], [0, 0], [0, 0]]], p=0.5))
    found = accumulator.result()
    assert found.tokens == 6
    assert found.rate == {"a": 0.5, "b": pytest.approx(1 / 3)}
    assert found.fraction["b"] == pytest.approx([2 / 3, 1 / 3])
    assert found.mean_rate == pytest.approx(5 / 12)
    assert found.entropy["a"] == pytest.approx(math.log(2))
    assert found.entropy["b"] == pytest.approx(-(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3))
    sure = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert found.token_entropy["a"] == pytest.approx((2 * sure + 4 * math.log(2)) / 6)
    # Site a costs 2 more on the expensive path, site b 1 more.
    assert found.cost_weighted_rate == pytest.approx((2 * 0.5 + 1 / 3) / 3)


def test_balance_is_weighted_by_tokens() -> None:
    one, two = decision([[[1, 1], [1, 1]]], p=0.9), decision([[[0, 1], [0, 1], [1, 0], [1, 0]]], p=0.5)
    accumulator = RoutingAccumulator()
    accumulator.add(one)
    accumulator.add(two)
    expected = (2 * float(switch_loss(one)) + 4 * float(switch_loss(two))) / 6
    assert accumulator.result().balance_loss == pytest.approx(expected)


def test_padding_counts_nowhere() -> None:
    plain, padded = RoutingAccumulator(), RoutingAccumulator()
    plain.add(decision([[[1, 0], [0, 1]]], p=0.8))
    padded.add(decision([[[1, 0], [0, 1], [1, 1]]], p=0.8, valid=[[True, True, False]]))
    assert padded.result() == plain.result()
    nothing = RoutingAccumulator()
    nothing.add(decision([[[1, 0]]], valid=[[False]]))
    assert nothing.result() is None
    assert RoutingAccumulator().result() is None


def test_a_collapsed_site_has_no_entropy() -> None:
    accumulator = RoutingAccumulator()
    accumulator.add(decision([[[1, 0], [1, 0]]]))
    assert accumulator.result().entropy == {"a": 0.0, "b": 0.0}


def test_one_batch_that_is_not_causal_makes_all_of_it_not_causal() -> None:
    accumulator = RoutingAccumulator()
    accumulator.add(decision([[[1, 0]]], causal=False))
    accumulator.add(decision([[[1, 0]]]))
    assert accumulator.result().causal is False


def test_other_sites_cannot_be_added() -> None:
    accumulator = RoutingAccumulator()
    accumulator.add(decision([[[1, 0]]]))
    with pytest.raises(ValueError, match="other sites"):
        accumulator.add(decision([[[1, 0]]], sites=("a", "c")))


def test_state_restores_the_sums_exactly() -> None:
    straight, before, after = RoutingAccumulator(), RoutingAccumulator(), RoutingAccumulator()
    one, two = decision([[[1, 0], [0, 1]]], p=0.3), decision([[[1, 1]]], p=0.7)
    for each in (one, two):
        straight.add(each)
    before.add(one)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    after.add(two)
    assert after.result() == straight.result()
    after.load_state_dict({})
    assert after.result() is None


def test_a_path_that_all_take_has_an_entropy_of_zero_and_not_of_minus_zero() -> None:
    accumulator = RoutingAccumulator()
    accumulator.add(decision([[[1, 1], [1, 1]]], p=0.9))
    found = accumulator.result()
    assert found is not None
    assert [f"{value:.3f}" for value in found.entropy.values()] == ["0.000"] * 2
