"""Load balancing."""

from jaxtyping import Float, Int
from torch import Tensor

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
