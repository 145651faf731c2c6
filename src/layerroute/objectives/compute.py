"""Terms on decisions: load balancing, how much of the expensive path is used, and how far that is from a target."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from layerroute.routing.budget import mean_over_ranks
from layerroute.routing.decision import RouteDecision


def switch_loss(decision: RouteDecision, counts: Int[Tensor, "R P"] | None = None) -> Float[Tensor, ""]:
    """P * sum_j f_j * p_j, averaged over sites (Switch Transformer, Fedus et al. 2021, eq. 4).

    f_j is the share of valid tokens whose hard choice is path j (no gradient), p_j the mean probability of path j.
    The minimum is near 1, at equal shares: it pulls to 50/50 by construction, so it is no way to ask for a budget.

    Args:
        counts: hard choices to take f_j from, where they are of more tokens than this decision's (all ranks of a
            distributed run: then the mean over ranks of this loss, and of its gradient, is that of the whole batch).
    """
    if counts is None:
        fractions = decision.fractions().detach().nan_to_num()
    else:
        fractions = (counts / counts.sum(dim=-1, keepdim=True)).nan_to_num().to(decision.probabilities.dtype)
    return len(decision.paths) * (fractions * decision.mean_probabilities()).sum(dim=-1).mean()


def mean_activity(decision: RouteDecision) -> Float[Tensor, ""]:
    """Mean probability of the expensive path over valid tokens and sites (the per-layer L1 of layer skipping)."""
    return decision.mean_probabilities()[:, -1].mean()


def quadratic_budget(decision: RouteDecision, target: float) -> Float[Tensor, ""]:
    """(mean p - target)^2 with p the probability of the expensive path, weighted by what each site costs.

    In a distributed run the mean is over all ranks, which must all call it.

    Args:
        target: the budget r, a share in [0, 1].
    """
    by_site = mean_over_ranks(decision.mean_probabilities()[:, -1])
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
        # A copy: `update` moves the multiplier in place, maybe before the backward pass has read it.
        return self.multiplier.detach().clone() * (used - self.target)

    @torch.no_grad()
    def update(self, used: Float[Tensor, ""]) -> None:
        """Dual ascent after a step: ``used`` is its hard rate on this rank (``RouteDecision.cost_weighted_rate``)."""
        used = mean_over_ranks(used)
        self.multiplier += self.step * (used - self.target).nan_to_num()
        self.multiplier.clamp_(min=0)
