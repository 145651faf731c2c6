"""REINFORCE with a moving-average baseline (Williams 1992), for the historical batch-level router."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerroute.routing.budget import mean_over_ranks
from layerroute.routing.decision import RouteDecision


class PolicyGradient(nn.Module):
    """Surrogate loss whose gradient is (cost - baseline) * grad log p(choice).

    Args:
        momentum: of the moving average of the cost that serves as baseline. Default 0.9.
    """

    baseline: Tensor
    updates: Tensor

    def __init__(self, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, decision: RouteDecision, cost: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The surrogate for one batch.

        Args:
            decision: of the ``reinforce`` estimator, whose choices were sampled.
            cost: what the choices led to (loss plus compute penalty), to be made small; no gradient is taken of it.
        """
        cost = cost.detach().float()
        reference = torch.where(self.updates > 0, self.baseline, cost)
        weight = decision.valid.unsqueeze(-1).float()
        log_probability = (decision.log_probability() * weight).sum() / weight.sum().clamp_min(1)
        return (cost - reference) * log_probability

    @torch.no_grad()
    def update(self, cost: Float[Tensor, ""]) -> None:
        """Move the baseline after a step: ``cost`` is that of its choices on this rank."""
        cost = mean_over_ranks(cost.detach().float())
        moved = self.momentum * self.baseline + (1 - self.momentum) * cost
        self.baseline.copy_(torch.where(self.updates > 0, moved, cost))
        self.updates += 1
