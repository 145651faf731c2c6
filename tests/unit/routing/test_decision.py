import math

import pytest
import torch

from layerroute.routing import RouteDecision


def make(
    choice, valid=None, sites=("layer1.mixer", "layer2.mixer"), costs=((0.0, 1.0), (0.0, 3.0))
) -> RouteDecision:
    choice = torch.as_tensor(choice)
    gate = torch.nn.functional.one_hot(choice, 2).float()
    valid = torch.ones(choice.shape[:2], dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    return RouteDecision(
        probabilities=0.25 + 0.5 * gate,
        choice=choice,
        valid=valid,
        sites=tuple(sites),
        paths=("gdn", "softmax"),
        costs=torch.tensor(costs),
        gate=gate,
    )


def test_rates_count_valid_tokens_only():
    choice = [[[1, 0], [1, 0], [0, 1], [0, 0]]]
    assert make(choice).rate().tolist() == [0.5, 0.25]
    masked = make(choice, [[False, False, True, True]])
    assert masked.rate().tolist() == [0.0, 0.5]
    assert masked.counts().tolist() == [[2, 0], [1, 1]]
    assert masked.expensive.sum().item() == 1


def test_cost_weighting_differs_from_the_plain_mean():
    decision = make([[[1, 0], [1, 0]]])
    assert decision.mean_rate().item() == 0.5
    assert decision.cost_weighted_rate().item() == pytest.approx(0.25)


def test_entropies():
    decision = make([[[1, 0], [0, 0]]])
    assert decision.entropy().tolist() == pytest.approx([math.log(2), 0.0])
    unsure = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert decision.token_entropy().tolist() == pytest.approx([unsure, unsure])


def test_join_puts_sites_side_by_side_and_keeps_the_causal_mark():
    one = make([[[1], [0]]], sites=["a"], costs=[[0.0, 1.0]])
    other = make([[[0], [1]]], sites=["b"], costs=[[0.0, 2.0]])
    other = RouteDecision(**{**other.__dict__, "causal": False})
    joined = RouteDecision.join([one, other])
    assert joined.sites == ("a", "b")
    assert joined.choice[0].tolist() == [[1, 0], [0, 1]]
    assert joined.costs.tolist() == [[0.0, 1.0], [0.0, 2.0]]
    assert not joined.causal
    assert RouteDecision.join([one]) is one
    with pytest.raises(ValueError, match="no decisions"):
        RouteDecision.join([])


def test_names_must_fit_shapes():
    with pytest.raises(ValueError, match="1 site names"):
        make([[[1, 0]]], sites=["only one"])


def test_detach_drops_the_graph():
    decision = make([[[1, 0]]])
    grown = RouteDecision(**{**decision.__dict__, "probabilities": decision.probabilities.requires_grad_()})
    assert grown.mean_probabilities().requires_grad
    assert not grown.detach().mean_probabilities().requires_grad
