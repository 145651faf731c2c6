"""Load balancing."""

from jaxtyping import Float
from torch import Tensor

from layerroute.routing.decision import RouteDecision


def switch_loss(decision: RouteDecision) -> Float[Tensor, ""]:
    """P * sum_j f_j * p_j, averaged over sites (Switch Transformer, Fedus et al. 2021, eq. 4).

    f_j is the share of valid tokens whose hard choice is path j (no gradient), p_j the mean probability of path j.
    The minimum is near 1, at equal shares: it pulls to 50/50 by construction, so it is no way to ask for a budget.
    """
    fractions = decision.fractions().detach().nan_to_num()
    return len(decision.paths) * (fractions * decision.mean_probabilities()).sum(dim=-1).mean()
