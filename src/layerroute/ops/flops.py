"""Counting the FLOPs that are really executed."""

import math
import sys
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


def _four_bits(left_shape: Any, _packed: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * math.prod(left_shape) * weight_shape[0])  # the weight is (out, in), packed in bytes


def flop_counter() -> FlopCounterMode:
    """A ``FlopCounterMode`` that also sees what torch's own counts as nothing.

    These are the CPU's fused attention and its backward, counted like torch's other attention kernels over the full
    T x S square whatever the mask, the in-place batched product, and products with weights of four bits.
    """
    formulas: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        torch.ops.aten.baddbmm_: _product,
    }
    if "bitsandbytes" in sys.modules:
        formulas |= {
            getattr(torch.ops.bitsandbytes, name): _four_bits
            for name in ("gemm_4bit", "gemv_4bit")
            if hasattr(torch.ops.bitsandbytes, name)
        }
    return FlopCounterMode(display=False, custom_mapping=formulas)
