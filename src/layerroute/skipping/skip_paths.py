"""What a token that skips gets instead of the layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LowRankSkip(nn.Module):
    """An estimate of the layer's update from its input: (h - mean) A B + bias, added to h.

    It starts as the identity (B and bias are zero). Calibration regresses the layer's update on its input in closed
    form and cuts the solution to the rank (``set``); training goes on from there. fp32, whatever the model's dtype.

    Args:
        hidden_size: D.
        rank: columns of A.
    """

    mean: Tensor
    inner: Callable[[Tensor], Tensor] | None = None
    """What the r numbers between the two maps go through."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size, dtype=torch.float32))
        self.down = nn.Parameter(torch.empty(hidden_size, rank, dtype=torch.float32))
        self.up = nn.Parameter(torch.zeros(rank, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))
        nn.init.normal_(self.down, std=hidden_size**-0.5)

    @torch.no_grad()
    def set(
        self,
        mean: Float[Tensor, "D"],
        down: Float[Tensor, "D r"],
        up: Float[Tensor, "r D"],
        bias: Float[Tensor, "D"],
    ) -> None:
        """Take a calibrated map (its rank must be the module's)."""
        for target, value in ((self.mean, mean), (self.down, down), (self.up, up), (self.bias, bias)):
            target.copy_(value)

    def forward(self, hidden: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """The update to add to ``hidden``, in its dtype."""
        # (h - mean) A = h A - mean A: one small product in place of a pass over h.
        shift = -(self.mean @ self.down)
        down, shift, up, bias = (x.to(hidden.dtype) for x in (self.down, shift, self.up, self.bias))
        inside = F.linear(hidden, down.T, shift)
        return F.linear(inside if self.inner is None else self.inner(inside), up.T, bias)


class NonLinearSkip(LowRankSkip):
    """SiLU((h - mean) A) B + bias: a feed-forward network of width r, at the FLOPs of a low-rank map of rank r.

    The stand-in of informed routing (arXiv 2510.13831). Calibration starts it at the low-rank map and goes on by
    gradient descent.
    """

    inner = staticmethod(F.silu)


SKIP_PATH_MODULES: dict[str, type[LowRankSkip]] = {"low_rank": LowRankSkip, "non_linear": NonLinearSkip}
"""By ``skip.skip_path``; ``identity`` has none."""
