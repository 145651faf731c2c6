"""The gated delta rule as its definition reads: one token after another. The judge of every backend."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.ops.gated_delta.inputs import (
    check_inputs,
    compute_dtype,
    document_resets,
    l2_normalize,
    without_autocast,
)


def recurrent_gated_delta_rule(
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
    """Run the recurrence token by token; see ``dispatch.gated_delta_rule`` for arguments and result.

    Costs O(T) sequential steps, each a handful of small tensor operations: right for decoding a few tokens,
    slow for long sequences.
    """
    check_inputs(query, key, value, log_decay, beta, initial_state, document_ids)
    dtype = compute_dtype(query, key, value, log_decay, beta, initial_state)
    batch, time, heads, key_dim = query.shape
    value_dim = value.shape[-1]
    output_dtype = value.dtype
    with without_autocast(query.device):
        query, key, value, log_decay, beta = (t.to(dtype) for t in (query, key, value, log_decay, beta))
        if normalize_qk:
            query, key = l2_normalize(query), l2_normalize(key)
        query = query * (key_dim**-0.5 if scale is None else scale)
        decay = log_decay.exp()
        if document_ids is not None:
            decay = decay.masked_fill(document_resets(document_ids)[..., None], 0.0)

        shape = (batch, heads, key_dim, value_dim)
        state = value.new_zeros(shape) if initial_state is None else initial_state.to(dtype)
        outputs = []
        for t in range(time):
            state = state * decay[:, t, :, None, None]
            predicted = torch.einsum("bhk,bhkv->bhv", key[:, t], state)
            written = (value[:, t] - predicted) * beta[:, t, :, None]
            state = state + key[:, t, :, :, None] * written[:, :, None, :]
            outputs.append(torch.einsum("bhk,bhkv->bhv", query[:, t], state))
        output = torch.stack(outputs, dim=1) if outputs else value.new_zeros(batch, 0, heads, value_dim)
        return output.to(output_dtype), state if output_final_state else None
