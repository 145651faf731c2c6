"""Counting the FLOPs that are really executed."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


# torch hands a formula the shapes of all arguments and of the result.
def _attention(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query_shape, key_shape, value_shape))


def _attention_backward(
    upstream_shape: Any, query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(upstream_shape, query_shape, key_shape, value_shape))


def _product(_into: Any, left_shape: Any, right_shape: Any, *_: Any, **__: Any) -> int:
    batch, rows, inner = left_shape
    return int(2 * batch * rows * inner * right_shape[-1])


def flop_counter() -> FlopCounterMode:
    """A ``FlopCounterMode`` that also sees what torch's own counts as nothing.

    These are the CPU's fused attention and its backward, counted like torch's other attention kernels over the full
    T x S square whatever the mask, and the in-place batched product.
    """
    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        torch.ops.aten.baddbmm_: _product,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)
