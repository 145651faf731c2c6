"""Counting the FLOPs that are really executed."""

import math
import sys
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


# torch hands a formula the shapes of all arguments and of the result. Its own formulas of attention refuse grouped
# queries in older versions: a product over the full T x S square costs 2 T S a dimension, whoever shares the keys.
def _attention(query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any) -> int:
    batch, heads, time, width = query_shape
    return int(2 * batch * heads * time * key_shape[2] * (width + value_shape[3]))


def _attention_backward(
    _upstream_shape: Any, query_shape: Any, key_shape: Any, value_shape: Any, *_: Any, **__: Any
) -> int:
    batch, heads, time, width = query_shape
    return int(2 * batch * heads * time * key_shape[2] * (3 * width + 2 * value_shape[3]))


def _product(_into: Any, left_shape: Any, right_shape: Any, *_: Any, **__: Any) -> int:
    batch, rows, inner = left_shape
    return int(2 * batch * rows * inner * right_shape[-1])


def _four_bits(left_shape: Any, _packed: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * math.prod(left_shape) * weight_shape[0])  # the weight is (out, in), packed in bytes


def flop_counter() -> FlopCounterMode:
    """A ``FlopCounterMode`` that also sees what torch's own counts as nothing, or cannot count.

    These are fused attention and its backward, counted over the full T x S square whatever the mask, the in-place
    batched product, and products with weights of four bits.
    """
    aten = torch.ops.aten
    formulas: dict[Any, Any] = {aten.baddbmm_: _product}
    for name in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
        formulas[getattr(aten, f"_scaled_dot_product_{name}")] = _attention
        formulas[getattr(aten, f"_scaled_dot_product_{name}_backward")] = _attention_backward
    if "bitsandbytes" in sys.modules:
        formulas |= {
            getattr(torch.ops.bitsandbytes, name): _four_bits
            for name in ("gemm_4bit", "gemv_4bit")
            if hasattr(torch.ops.bitsandbytes, name)
        }
    return FlopCounterMode(display=False, custom_mapping=formulas)
