"""What every backend of the gated delta rule does with its inputs before it computes."""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NORM_EPSILON = 1e-6  # as in flash-linear-attention's kernels, so that the backends agree


def check_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial_state: Tensor | None,
    document_ids: Tensor | None,
) -> None:
    """Raise ``ValueError`` that names the tensor whose shape does not fit the others."""
    if query.ndim != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; expected (B, T, H, K)")
    batch, time, heads, key_dim = query.shape
    value_dim = value.shape[-1]
    expected = {
        "key": (key, (batch, time, heads, key_dim)),
        "value": (value, (batch, time, heads, value_dim)),
        "log_decay": (log_decay, (batch, time, heads)),
        "beta": (beta, (batch, time, heads)),
        "initial_state": (initial_state, (batch, heads, key_dim, value_dim)),
        "document_ids": (document_ids, (batch, time)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with query {tuple(query.shape)} it must be {shape}"
                " (query, key and value have equal heads: repeat grouped heads before the call)"
            )


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any tensor is float64, else float32: nothing is accumulated in a narrower type."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def l2_normalize(vectors: Float[Tensor, "*shape K"]) -> Float[Tensor, "*shape K"]:
    """Scale the last dimension to unit length (with 1e-6 under the root, so that zeros stay zeros)."""
    return vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + NORM_EPSILON)


def document_resets(document_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Mark the tokens whose document differs from the previous token's; the first token never is."""
    resets = torch.zeros_like(document_ids, dtype=torch.bool)
    resets[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return resets


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast does not narrow products to half precision, on devices that have autocast."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
