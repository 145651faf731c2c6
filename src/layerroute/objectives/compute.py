"""Penalties on compute: how much of the expensive path is used, or how far that is from a target."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerroute.routing.budget import mean_over_ranks
from layerroute.routing.decision import RouteDecision


def mean_activity(decision: RouteDecision) -> Float[Tensor, ""]:
    """Mean probability of the expensive path over valid tokens and sites (the per-layer L1 of layer skipping)."""
    return decision.mean_probabilities()[:, -1].mean()


def quadratic_budget(decision: RouteDecision, target: float, *, per_site: bool = False) -> Float[Tensor, ""]:
    """(mean p - target)^2 with p the probability of the expensive path, weighted by what each site costs.

    In a distributed run the mean is over all ranks, which must all call it.

    Args:
        target: the budget r, a share in [0, 1].
        per_site: hold every site at the target (mean of squares) instead of their cost-weighted mean.
    """
    by_site = mean_over_ranks(decision.mean_probabilities()[:, -1])
    if per_site:
        return (by_site - target).square().mean()
    weight = decision.costs[:, -1] - decision.costs[:, 0]
    return ((by_site * weight).sum() / weight.sum() - target).square()


class Lagrangian(nn.Module):
    """A multiplier m >= 0 that grows while compute exceeds its target: m * (mean p - target).

    Args:
        target: the budget r.
        step: learning rate of the dual ascent on the *hard*, cost-weighted rate. Default 0.1.

    In short trials it overshot and then saturated when the router started at zero logits; it is offered for
    comparison, not as the default.
    """

    multiplier: Tensor

    def __init__(self, target: float, *, step: float = 0.1) -> None:
        super().__init__()
        self.target, self.step = target, step
        self.register_buffer("multiplier", torch.zeros(()))

    def forward(self, decision: RouteDecision) -> Float[Tensor, ""]:
        """The penalty of this batch; the multiplier is a constant in it."""
        weight = decision.costs[:, -1] - decision.costs[:, 0]
        used = (decision.mean_probabilities()[:, -1] * weight).sum() / weight.sum()
        # A copy: `update` moves the multiplier in place before the backward pass has read it.
        return self.multiplier.detach().clone() * (used - self.target)

    @torch.no_grad()
    def update(self, decision: RouteDecision) -> None:
        """Dual ascent after a step."""
        used = mean_over_ranks(decision.cost_weighted_rate())
        self.multiplier += self.step * (used - self.target).nan_to_num()
        self.multiplier.clamp_(min=0)
