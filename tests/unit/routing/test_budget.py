import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerroute.errors import UserError
from layerroute.routing import Routing, RoutingConfig
from layerroute.routing.budget import margins, quantile_threshold


@given(count=st.integers(1, 60), rate=st.floats(0, 1), padding=st.integers(0, 7), seed=st.integers(0, 99))
def test_quantile_keeps_exactly_the_share(count, rate, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    margin = torch.randn(1, count + padding, 3, generator=generator)
    valid = torch.arange(count + padding)[None] >= padding
    threshold = quantile_threshold(margin, valid, torch.full((3,), rate))
    kept = ((margin > threshold) & valid[..., None]).sum(dim=(0, 1))
    assert kept.tolist() == [int(torch.tensor(rate * count).round())] * 3


def test_quantile_budget_holds_in_training_with_noise_and_serves_at_inference():
    torch.manual_seed(0)
    routing = Routing(
        RoutingConfig(budget="quantile", rate=0.2), 8, sites=["a", "b"], paths=["gdn", "softmax"]
    )
    valid, positions = torch.ones(4, 500, dtype=torch.bool), torch.arange(500).expand(4, -1)
    routing.train()
    for _ in range(30):
        decision = routing(torch.randn(4, 500, 8), valid=valid, positions=positions)
        assert decision.rate().tolist() == pytest.approx([0.2, 0.2])
    routing.eval()
    fresh = routing(torch.randn(4, 500, 8), valid=valid, positions=positions)
    assert fresh.rate().tolist() == pytest.approx([0.2, 0.2], abs=0.03)
    before = routing.thresholds.value.clone()
    routing(torch.randn(4, 500, 8), valid=valid, positions=positions)
    assert torch.equal(routing.thresholds.value, before), "inference must not move thresholds"


def test_controller_reaches_the_rate_and_is_saved():
    torch.manual_seed(0)
    config = RoutingConfig(
        budget="controller", rate=0.3, threshold_step=0.05, estimator="sigmoid_st", initial_bias=1.0
    )
    routing = Routing(config, 8, sites=["a"], paths=["gdn", "softmax"]).train()
    for layer in routing.router.layers:
        torch.nn.init.normal_(layer.weight, std=0.5)
    valid, positions = torch.ones(4, 256, dtype=torch.bool), torch.arange(256).expand(4, -1)
    for _ in range(120):
        decision = routing(torch.randn(4, 256, 8), valid=valid, positions=positions)
        routing.thresholds.update(decision.counts(), routing.rate)
    assert decision.rate().item() == pytest.approx(0.3, abs=0.08)
    copy = Routing(config, 8, sites=["a"], paths=["gdn", "softmax"])
    copy.load_state_dict(routing.state_dict())
    assert torch.equal(copy.thresholds.value, routing.thresholds.value)
    assert copy.thresholds.value.abs().sum() > 0


def test_a_quantile_gives_the_rate_on_its_own_tokens():
    logits = torch.randn(2, 100, 2, 2)
    everyone = torch.ones(2, 100, dtype=torch.bool)
    threshold = quantile_threshold(margins(logits), everyone, torch.tensor([0.25, 0.5]))
    margin = logits[..., 1] - logits[..., 0]
    assert (margin > threshold).float().mean(dim=(0, 1)).tolist() == pytest.approx([0.25, 0.5])


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_while_all_tokens_run_a_surrogate_tells_who_is_to_run_later(scale):
    """At the cut of now nothing is in doubt: most tokens have no gradient, the more so the larger the logits."""
    torch.manual_seed(0)
    logits = torch.stack([torch.zeros(2, 40, 2), scale * torch.randn(2, 40, 2)], dim=-1)
    hidden, valid = torch.randn(2, 40, 8), torch.ones(2, 40, dtype=torch.bool)
    valid[1, 30:] = False
    more = {"valid": valid, "positions": torch.arange(40).expand(2, 40)}
    felt = {}
    for surrogate in ("cut", "asked"):
        config = RoutingConfig(estimator="sigmoid_st", budget="quantile", rate=0.25, surrogate=surrogate)
        routing = Routing(config, 8, sites=["a", "b"], paths=["gdn", "softmax"]).train()
        given = logits.clone().requires_grad_()
        routing.router.forward = lambda states, given=given: given
        routing.rate.fill_(1.0)
        decision = routing(hidden, **more)
        assert decision.choice[valid].all()
        decision.gate[valid][..., -1].sum().backward()
        felt[surrogate] = given.grad[valid][..., -1] * margins(logits)[valid].std(
            dim=0, correction=0
        ).clamp_min(1)
        assert routing.eval()(hidden, **more).choice[valid].all(), "what is served follows the cuts alone"
    # In units of the spread: the derivative of a sigmoid, whose middle a quarter of the tokens exceeds.
    assert felt["asked"].amax() == pytest.approx(0.25, abs=0.01) and felt["asked"].median() > 0.1
    if scale > 1:
        assert felt["cut"].median() < 1e-3


def test_a_surrogate_does_not_make_the_gradient_of_a_new_router_larger():
    config = RoutingConfig(estimator="sigmoid_st", budget="quantile", rate=0.25, surrogate="asked")
    routing = Routing(config, 8, sites=["a"], paths=["gdn", "softmax"]).train()
    everyone = torch.ones(1, 16, dtype=torch.bool)
    for spread in (1e-3, 0.0):
        logits = torch.stack([torch.zeros(1, 16, 1), spread * torch.randn(1, 16, 1)], dim=-1).requires_grad_()
        routing.router.forward = lambda states, logits=logits: logits
        decision = routing(torch.zeros(1, 16, 8), valid=everyone, positions=torch.arange(16).unsqueeze(0))
        decision.gate[..., -1].sum().backward()
        torch.testing.assert_close(logits.grad[..., -1], torch.full((1, 16, 1), 0.25), atol=1e-3, rtol=0)


def test_a_surrogate_at_the_rate_asked_needs_a_cut_and_a_straight_way_through():
    for wrong in ({"budget": "none"}, {"estimator": "selected"}, {"control": "random", "budget": "none"}):
        with pytest.raises(UserError, match="surrogate"):
            RoutingConfig(**{"surrogate": "asked", "budget": "quantile", **wrong})
    with pytest.raises(UserError, match="Did you mean 'asked'"):
        RoutingConfig(surrogate="aked")
