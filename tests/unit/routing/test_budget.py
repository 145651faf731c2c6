import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
