import pytest
import torch

from layerroute.evaluation.executed import executed_flops_per_token
from layerroute.hybrid import HybridConfig, HybridForCausalLM, forward_flops
from layerroute.routing import executed


@pytest.mark.parametrize("pattern", [["gdn", "routed", "softmax"], ["softmax", "softmax"]])
def test_what_is_executed_is_what_was_reckoned(pattern) -> None:
    config = HybridConfig(vocab_size=50, hidden_size=32, num_attention_heads=2, layer_pattern=pattern)
    model = HybridForCausalLM(config).train()
    batch = {"input_ids": torch.randint(0, 50, (2, 128)), "labels": torch.zeros(2, 128)}
    reckoned = forward_flops(config, 128).forward_per_token
    with executed(model, "masked"):  # both paths of every token, whatever the router chooses
        masked = executed_flops_per_token(model, batch)
    assert masked == pytest.approx(reckoned, rel=0.02)
    assert executed_flops_per_token(model, batch) <= masked
    assert model.training
