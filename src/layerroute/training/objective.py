"""The training loss: cross-entropy plus weighted terms on the decisions, each reported apart."""

from dataclasses import dataclass, field

from torch import Tensor

from layerroute.objectives import quadratic_budget, switch_loss
from layerroute.routing import RouteDecision
from layerroute.training.configuration import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """A batch's training loss and what it is made of.

    Attributes:
        total: what the gradient is taken of.
        parts: unweighted terms by the name under which they are logged: ``lm_loss`` (cross-entropy in nats),
            ``balance_loss`` (measured wherever there is routing, whatever its weight), ``budget_loss``.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


def training_loss(
    config: ObjectiveConfig, language_loss: Tensor, decision: RouteDecision | None, *, rate: float
) -> LossTerms:
    """Add the terms of ``config`` to the cross-entropy.

    Args:
        language_loss: cross-entropy of the batch in nats per token.
        decision: of this batch, None for a model without routing: its loss is the cross-entropy.
        rate: the rate asked for at this step.
    """
    parts = {"lm_loss": language_loss.detach()}
    total = language_loss
    if decision is not None:
        balance = switch_loss(decision)
        parts["balance_loss"] = balance.detach()
        if config.balance_weight:
            total = total + config.balance_weight * balance
        if config.budget_weight:
            budget = quadratic_budget(decision, rate)
            parts["budget_loss"] = budget.detach()
            total = total + config.budget_weight * budget
    return LossTerms(total=total, parts=parts)
