"""FLOPs that a forward pass really executes, counted by PyTorch."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from layerroute.evaluation.perplexity import inference
from layerroute.ops.flops import flop_counter


def executed_flops_per_token(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Forward FLOPs per token of one batch in inference mode, as ``ops.flops.flop_counter`` sees them.

    It counts matrix products, convolutions and attention (a multiply-add is 2 FLOPs), not element-wise work, and
    knows nothing of kernels outside PyTorch: on CUDA with flash-linear-attention the delta rule is not in it.
    """
    with inference(model) as device, flop_counter() as counter, precision():
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        model(**inputs, use_cache=False)
    return counter.get_total_flops() / inputs["input_ids"].numel()
