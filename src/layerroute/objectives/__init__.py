"""Terms of the training loss. They see logits and RouteDecisions only; none is ever part of validation loss."""

from layerroute.objectives.balance import switch_loss
from layerroute.objectives.compute import Lagrangian, mean_activity, quadratic_budget
from layerroute.objectives.distillation import distillation_loss
from layerroute.objectives.language_model import cross_entropy, shift_labels, token_cross_entropy
from layerroute.objectives.policy_gradient import PolicyGradient

__all__ = [
    "Lagrangian",
    "PolicyGradient",
    "cross_entropy",
    "distillation_loss",
    "mean_activity",
    "quadratic_budget",
    "shift_labels",
    "switch_loss",
    "token_cross_entropy",
]
