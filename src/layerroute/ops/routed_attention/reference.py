"""The plain definition of routed attention: one dense mask, everything in fp32."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.ops.routed_attention.inputs import Intervals


def reference_routed_attention(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    spans: Intervals,
    *,
    visible: Bool[Tensor, "N S"] | None = None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "N H V"]:
    """See ``routed_attention``. Copies the keys of its row for every query: small inputs only."""
    repeat = query.shape[1] // key.shape[2]
    precision = torch.promote_types(query.dtype, torch.float32)
    keys = key[spans.row].repeat_interleave(repeat, dim=2).to(precision)
    values = value[spans.row].repeat_interleave(repeat, dim=2).to(precision)
    scores = scale * torch.einsum("nhk,nshk->nhs", query.to(precision), keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = spans.visible(key.shape[1])
    if visible is not None:
        mask = mask & visible
    # A query without keys gets zeros, not the NaN of an empty softmax.
    scores = scores.masked_fill(~mask[:, None, :], torch.finfo(precision).min)
    weights = scores.softmax(dim=-1) * mask[:, None, :]
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return torch.einsum("nhs,nshv->nhv", weights, values).to(query.dtype)
