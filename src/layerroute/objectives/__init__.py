"""Terms of the training loss. They see logits and RouteDecisions only; none is ever part of validation loss."""

from layerroute.objectives.compute import Lagrangian, mean_activity, quadratic_budget, switch_loss
from layerroute.objectives.language_model import (
    cross_entropy,
    distillation_loss,
    shift_labels,
    token_cross_entropy,
)
from layerroute.objectives.policy_gradient import PolicyGradient
