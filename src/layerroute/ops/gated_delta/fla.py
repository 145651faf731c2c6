"""The gated delta rule on CUDA by flash-linear-attention's Triton kernels (github.com/fla-org/flash-linear-attention).

Written against fla 0.6 (``chunk_gated_delta_rule``, ``fused_recurrent_gated_delta_rule``); the keyword arguments used
are those of 0.4 and later. Its kernels were held against the reference in the Triton interpreter; ``tests/gpu`` does it
on a GPU.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.errors import UserError
from layerroute.ops.gated_delta.inputs import check_inputs, document_resets

RECURRENT_UP_TO = 64  # the library's own layer changes kernels at this length
_LARGEST_KEY_DIM = 256  # a limit of the chunk kernel
_SMALLEST_LOG = -110.0  # e^-110 is 0 in fp32: keeps the kernel's running sums of log decays precise


@cache
def unavailable_reason() -> str | None:
    """Say why flash-linear-attention cannot run in this process, or None if it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install 'layerroute[cuda]'"
    try:
        _kernels()
    except ImportError as error:
        return f"flash-linear-attention does not import: {error}"
    return None


def obstacle(query: Tensor, value: Tensor) -> str | None:
    """Say why the kernels cannot take these inputs, or None if they can."""
    if query.device.type != "cuda":
        return f"tensors on {query.device.type}"
    if reason := unavailable_reason():
        return reason
    if value.dtype not in (torch.bfloat16, torch.float16):
        return f"the kernels multiply in half precision, the values are {str(value.dtype).removeprefix('torch.')}"
    if query.shape[-1] > _LARGEST_KEY_DIM:
        return f"the kernels take key dimensions up to {_LARGEST_KEY_DIM}, here {query.shape[-1]}"
    return None


def fla_gated_delta_rule(
    query: Float[Tensor, "B T H K"],
    key: Float[Tensor, "B T H K"],
    value: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None = None,
    output_final_state: bool = False,
    document_ids: Int[Tensor, "B T"] | None = None,
    scale: float | None = None,
    normalize_qk: bool = False,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"] | None]:
    """Run the rule on CUDA; see ``dispatch.gated_delta_rule`` for arguments and result.

    Short calls that need no gradient take the recurrent kernel, which has no backward pass; all others the chunk
    kernel. ``document_ids`` costs one device synchronisation, to count the documents.

    Raises:
        UserError: the library, the device or the dtype is not there for it (``obstacle`` says which).
    """
    check_inputs(query, key, value, log_decay, beta, initial_state, document_ids)
    if reason := obstacle(query, value):
        raise UserError(f"backend 'fla' cannot run: {reason}. Use backend='auto' or 'chunked'.")
    batch, time, heads, key_dim = query.shape
    if query.numel() == 0 or value.numel() == 0:
        empty = (
            initial_state.float()
            if initial_state is not None
            else value.new_zeros(batch, heads, key_dim, value.shape[-1], dtype=torch.float32)
        )
        return torch.zeros_like(value), empty if output_final_state else None
    tensors = [
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        log_decay.float().clamp(min=_SMALLEST_LOG),
        beta,
    ]
    state = None if initial_state is None else initial_state.float()
    boundaries = last = None
    if document_ids is not None:
        tensors = [t.flatten(0, 1).unsqueeze(0) for t in tensors]
        boundaries, first, last = document_boundaries(document_ids)
        if state is not None:
            cleared = state.new_zeros(len(boundaries) - 1, *state.shape[1:])
            state = cleared.index_copy(0, first, state)
    chunk, recurrent = _kernels()
    differentiable = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*tensors, *(() if state is None else (state,)))
    )
    kernel = recurrent if time <= RECURRENT_UP_TO and not differentiable else chunk
    query, key, value, log_decay, beta = tensors
    output, final_state = kernel(
        q=query,
        k=key,
        v=value,
        g=log_decay,
        beta=beta,
        scale=scale,
        initial_state=state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=normalize_qk,
        cu_seqlens=boundaries,
    )
    if last is not None:
        output = output.squeeze(0).unflatten(0, (batch, time))
        final_state = final_state[last] if output_final_state else None
    return output, final_state if output_final_state else None


def document_boundaries(
    document_ids: Int[Tensor, "B T"],
) -> tuple[Int[Tensor, " bounds"], Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Lay the rows end to end and tell where each of the N documents begins.

    Returns:
        the boundaries in the flat sequence (0 first, B·T last); per row, the index of its first document; per row,
        the index of its last document. The first document of a row continues the row's initial state.
    """
    batch, time = document_ids.shape
    starts = document_resets(document_ids)
    starts[:, 0] = True
    flat = starts.flatten().nonzero().squeeze(1)
    boundaries = torch.cat([flat, flat.new_tensor([batch * time])])
    last = starts.sum(1).cumsum(0) - 1
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])
    return boundaries, first, last


@cache
def _kernels() -> tuple[Any, Any]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    return chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
