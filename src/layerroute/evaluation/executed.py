"""FLOPs that a forward pass really executes, counted by PyTorch."""

from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor, nn

from layerroute.evaluation.perplexity import Autocast, forward
from layerroute.ops.flops import flop_counter


def executed_flops_per_token(
    model: nn.Module, batch: Mapping[str, Tensor], *, precision: Autocast = nullcontext
) -> float:
    """Forward FLOPs per token of one batch in inference mode, as ``ops.flops.flop_counter`` sees them.

    It counts matrix products, convolutions and attention (a multiply-add is 2 FLOPs), not element-wise work, and
    knows nothing of kernels outside PyTorch: on CUDA with flash-linear-attention the delta rule is not in it.
    """
    with flop_counter() as counter:
        forward(model, batch, precision)
    return counter.get_total_flops() / batch["input_ids"].numel()
