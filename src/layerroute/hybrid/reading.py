"""Bytes of its caches that the hybrid model reads for a token: what decoding waits for, beside the FLOPs.

Keys and values are read by the tokens that take softmax, as many as each of them sees; a GDN state is read, with the
taps of its convolution, by every token that updates it. Weights are not counted: every token reads them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.routing.decision import RouteDecision

_STATE_NUMBER = 4
"""Bytes of a number of a GDN state, which is kept in fp32."""


@dataclass(frozen=True, kw_only=True)
class BytesRead:
    """Bytes a token, the mean over a sequence that is decoded from its first token to its last.

    Attributes:
        keys_values: K and V of softmax attention.
        state: GDN states and taps.
    """

    keys_values: float
    state: float

    @property
    def per_token(self) -> float:
        """Both."""
        return self.keys_values + self.state


def bytes_read(
    config: HybridConfig,
    context_length: int,
    decision: RouteDecision | None = None,
    *,
    rate: float | None = None,
    number: int = 4,
) -> BytesRead:
    """Bytes that a token reads over sequences of ``context_length`` tokens.

    Args:
        decision: what was decided about such sequences (without padding); later tokens see more keys.
        rate: instead, a share of tokens that takes softmax at every routed layer, spread evenly over the sequence.
        number: bytes of a number of K, V and taps.

    Raises:
        ValueError: a model with routed layers, and neither ``decision`` nor ``rate``.
    """
    assert config.head_dim is not None and config.num_key_value_heads is not None
    heads, key, value = config.num_attention_heads, config.head_dim, config.gdn_value_dim
    one_key = 2 * config.num_key_value_heads * key * number
    one_state = (
        heads * key * value * _STATE_NUMBER + heads * (2 * key + value) * config.gdn_conv_size * number
    )
    seen = torch.arange(1, context_length + 1, dtype=torch.float64)
    own = config.context == "own_context"
    keys = states = 0.0
    for layer, kind in enumerate(config.layer_pattern or []):
        if kind == "gdn":
            states += 1.0
        elif kind != "routed":
            most = config.window if kind == "window" else None
            keys += float(seen.clamp(max=most or context_length).mean())
        elif decision is not None:
            softmax = _by_key_head(config, decision, layer)
            places = softmax.cumsum(dim=1) if own else seen[:, None].to(softmax)
            keys += float((softmax * places).sum(dim=1).mean()) / context_length
            states += 1.0 - float(softmax.mean()) if own else 1.0
        elif rate is not None:
            keys += rate * ((rate * context_length + 1) / 2 if own else float(seen.mean()))
            states += 1.0 - rate if own else 1.0
        else:
            raise ValueError("the bytes that routed layers read depend on a decision, or on a rate")
    return BytesRead(keys_values=keys * one_key, state=states * one_state)


def _by_key_head(config: HybridConfig, decision: RouteDecision, layer: int) -> Tensor:
    """(B, T, M) 1 where the keys of a head are read; M is 1 where tokens choose."""
    columns = [decision.sites.index(site) for site in config.sites_of(layer)]
    softmax = decision.expensive[..., columns].double()
    if len(columns) > 1:
        softmax = softmax.unflatten(-1, (config.num_key_value_heads, -1)).amax(dim=-1)
    return softmax
