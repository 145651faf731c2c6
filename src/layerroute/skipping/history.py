"""What routers read that see a token's states over depth."""

import torch
from jaxtyping import Float
from torch import Tensor


def with_history(
    states: Float[Tensor, "*tokens D"], before: Float[Tensor, "*tokens E"] | None, history: int
) -> Float[Tensor, "*tokens E"]:
    """Of E = (1 + history) D: the states, then those that came into the ``history`` routed layers below.

    Args:
        states: the input of a routed layer.
        before: what this gave at the routed layer below; None at the first one, which has zeros in their place.
        history: how many earlier states there are.
    """
    size = history * states.shape[-1]
    if before is None:
        older = states.new_zeros(*states.shape[:-1], size)
    else:
        older = before[..., :size].to(states.device, states.dtype)
    return torch.cat([states, older], dim=-1)
