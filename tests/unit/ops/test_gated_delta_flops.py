"""The analytic FLOPs of the gated delta rule are those that run."""

import pytest
import torch

from layerroute.ops.flops import flop_counter
from layerroute.ops.gated_delta import gated_delta_flops, gated_delta_rule
from tests.parity.gated_delta_inputs import make


@pytest.mark.parametrize("time", [5, 16, 33, 64, 1000])
def test_executed_flops_are_the_analytic_ones(time: int) -> None:
    inputs = make(time, batch=2, heads=3, key_dim=16, value_dim=24)
    with flop_counter() as counter, torch.no_grad():
        gated_delta_rule(*inputs.tensors(), normalize_qk=True)
    assert counter.get_total_flops() == 2 * gated_delta_flops(time, heads=3, key_dim=16, value_dim=24)
