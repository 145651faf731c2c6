"""The training loss: cross-entropy plus weighted terms on the decisions, each reported apart."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from layerroute.objectives import quadratic_budget, switch_loss
from layerroute.objectives.language_model import IGNORE, shift_labels
from layerroute.routing import RouteDecision, collect_decisions
from layerroute.routing.budget import all_reduced
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


class RoutedLoss(ABC):
    """The loss of a batch, with whatever state it keeps from batch to batch."""

    @abstractmethod
    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *, rate: float, done: float
    ) -> tuple[LossTerms, RouteDecision | None, Any]:
        """Terms, decision and output; ``rate`` is the rate asked for, ``done`` the share of the run."""

    def step_ended(self) -> None:  # noqa: B027 (most keep nothing)
        """An optimizer step is over, of however many parts."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exact in JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (most have none)
        """Restore what ``state_dict`` returned."""


def decided(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, RouteDecision | None]:
    """The model's output, and its decision with its graph; None of a model that routes nothing."""
    with collect_decisions(model, graph=True) as decisions:
        output = model(**inputs, use_cache=False)
    return output, decisions[-1] if decisions else None


class HybridLoss(RoutedLoss):
    """Of models that return their cross-entropy themselves.

    Args:
        few: few tokens are predicted (the answers of recall data): logits are computed for these alone.
    """

    def __init__(self, config: ObjectiveConfig, *, few: bool = False) -> None:
        self.config, self.few = config, few

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *, rate: float, done: float = 0.0
    ) -> tuple[LossTerms, RouteDecision | None, Any]:
        if self.few:
            inputs = {**inputs, "logits_to_keep": shift_labels(inputs["labels"]) != IGNORE}
        output, decision = decided(model, inputs)
        return training_loss(self.config, output.loss, decision, rate=rate), decision, output


def training_loss(
    config: ObjectiveConfig, language_loss: Tensor, decision: RouteDecision | None, *, rate: float
) -> LossTerms:
    """Add the terms of ``config`` to the cross-entropy (nats a token); ``decision`` is None where nothing is routed."""
    parts = {"lm_loss": language_loss.detach()}
    total = language_loss
    if decision is not None:
        # Shares are those of the whole batch, whichever processes hold its parts.
        balance = switch_loss(decision, all_reduced(decision.counts()))
        parts["balance_loss"] = balance.detach()
        if config.balance_weight:
            total = total + config.balance_weight * balance
        if config.budget_weight:
            budget = quadratic_budget(decision, rate)
            parts["budget_loss"] = budget.detach()
            total = total + config.budget_weight * budget
    return LossTerms(total=total, parts=parts)
