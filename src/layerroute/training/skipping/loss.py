"""The training loss of layer skipping, term by term."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.evaluation.perplexity import inference
from layerroute.objectives import (
    Lagrangian,
    PolicyGradient,
    cross_entropy,
    distillation_loss,
    mean_activity,
    quadratic_budget,
    shift_labels,
)
from layerroute.routing import RouteDecision
from layerroute.skipping.model import get_router, router_disabled
from layerroute.skipping.tuners import tuners
from layerroute.training.objective import LossTerms, RoutedLoss, decided
from layerroute.training.skipping.configuration import SkippingObjectiveConfig


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the context LoRA layers compute their base layer alone, bit for bit."""
    layers = tuners(model)
    before = [layer._disable_adapters for layer in layers]
    # PEFT's own switch also sets requires_grad, which DDP does not expect to move between forward and backward.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


class SkippingLoss(RoutedLoss):
    """Cross-entropy, distillation from the same model at full depth, and what holds the budget."""

    def __init__(self, config: SkippingObjectiveConfig, *, rate: float, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.lagrangian = Lagrangian(rate, step=config.lagrangian_step) if config.lagrangian_step else None
        self.policy = PolicyGradient() if config.policy_weight else None
        self.steps = 0
        self._used: list[Tensor] = []
        self._costs: list[Tensor] = []

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], *, rate: float, done: float
    ) -> tuple[LossTerms, RouteDecision | None, Any]:
        config = self.config
        router = get_router(model)
        if config.budgets:
            router.set_budget(self._drawn())
            rate = 1.0 - router.budgets.current if router.budgets is not None else rate
        inputs = dict(inputs)
        targets = shift_labels(inputs.pop("labels"))
        output, decision = decided(model, inputs)
        language = cross_entropy(output.logits, targets)
        parts = {"lm_loss": language.detach()}
        total = config.ce_weight * language
        if config.kd_weight and done >= config.kd_begin:
            valid = targets != -100
            teacher = self._teacher(model, inputs)
            divergence = distillation_loss(output.logits, teacher, valid, temperature=config.kd_temperature)
            parts["kd_loss"] = divergence.detach()
            total = total + config.kd_weight * divergence
        if decision is not None:
            total = total + self._compute_terms(decision, rate, language, done, parts)
        return LossTerms(total=total, parts=parts), decision, output

    def step_ended(self) -> None:
        """Move what is moved once a step, by the mean over its parts."""
        self.steps += 1
        for module, found in ((self.lagrangian, self._used), (self.policy, self._costs)):
            if module is not None and found:
                module.update(torch.stack(found).mean())
            found.clear()

    def _compute_terms(
        self, decision: RouteDecision, rate: float, language: Tensor, done: float, parts: dict[str, Tensor]
    ) -> Tensor:
        config = self.config
        ramp = 1.0 if not config.budget_begin else min(1.0, done / config.budget_begin)
        activity = mean_activity(decision)
        parts["activity"] = activity.detach()
        # A policy has λ in its cost; the expectation's own gradient on top of that would count it twice.
        own = 0.0 if self.policy is not None else config.activity_weight
        total = ramp * own * activity
        if config.budget_weight:
            budget = quadratic_budget(decision, rate)
            parts["budget_loss"] = budget.detach()
            total = total + ramp * config.budget_weight * budget
        if self.lagrangian is not None:
            self.lagrangian.to(activity.device).target = rate
            total = total + self.lagrangian(decision)
            self._used.append(decision.cost_weighted_rate().detach())
            parts["multiplier"] = self.lagrangian.multiplier.detach().clone()
        if self.policy is not None:
            price = ramp * config.activity_weight
            cost = language.detach() + price * decision.cost_weighted_rate().to(language)
            self._costs.append(cost.detach())
            surrogate = self.policy.to(activity.device)(decision, cost)
            parts["policy_loss"] = surrogate.detach()
            total = total + config.policy_weight * surrogate
        return total

    def _teacher(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        # In inference mode: a base with dropout would teach noise.
        with inference(model), router_disabled(model), adapters_off(model):
            logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    def _drawn(self) -> float:
        """The budget of this step; a function of seed and step alone, so that a resumed run draws the same."""
        digest = hashlib.sha256(f"{self.seed} {self.steps}".encode()).digest()
        return self.config.budgets[int.from_bytes(digest[:4], "big") % len(self.config.budgets)]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"steps": self.steps}
        for name in ("lagrangian", "policy"):
            module: nn.Module | None = getattr(self, name)
            if module is not None:
                state[name] = {key: value.tolist() for key, value in module.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = int(
            state.get("steps", state.get("batches", 0))
        )  # earlier versions counted parts of steps
        for name in ("lagrangian", "policy"):
            module: nn.Module | None = getattr(self, name)
            if module is not None and name in state:
                for key, value in state[name].items():
                    module.get_buffer(key).copy_(torch.tensor(value))
