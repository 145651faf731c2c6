"""FLOPs of fused attention are counted as torch counts them, and with grouped queries, too."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from layerroute.ops.flops import flop_counter

QUERY, KEY, VALUE, UPSTREAM = (2, 6, 5, 8), (2, 6, 7, 8), (2, 6, 7, 4), (2, 6, 5, 4)


@pytest.mark.parametrize("kernel", ["flash_attention_for_cpu", "flash_attention", "efficient_attention"])
def test_the_formulas_are_those_of_torch(kernel: str) -> None:
    registry = flop_counter().flop_registry
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")
    tensors = [torch.empty(shape) for shape in (UPSTREAM, QUERY, KEY, VALUE)]
    out = tensors[0]
    assert registry[forward](*tensors[1:], out_val=out) == sdpa_flop_count(QUERY, KEY, VALUE)
    expected = sdpa_backward_flop_count(UPSTREAM, QUERY, KEY, VALUE)
    assert registry[backward](*tensors, out_val=out) == expected


def test_grouped_queries_cost_what_whole_ones_do() -> None:
    query = torch.randn(2, 6, 9, 8, requires_grad=True)
    counts = []
    for groups in (6, 2):
        key, value = torch.randn(2, groups, 9, 8), torch.randn(2, groups, 9, 8)
        with flop_counter() as counter:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            forward = counter.get_total_flops()
            out.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][0] == 2 * 2 * 6 * 9 * 9 * 16
