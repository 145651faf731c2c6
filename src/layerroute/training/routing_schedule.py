"""Temperature, rate and thresholds of a model's routing modules while it trains, whatever the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from layerroute.routing import RouteDecision, find_handle, routings_of
from layerroute.routing.module import Routing
from layerroute.training.configuration import ObjectiveConfig
from layerroute.training.pace import Pace
from layerroute.training.skipping.configuration import SkippingObjectiveConfig


def progress(step: int, total: int) -> float:
    """Share of the run that is done at ``step`` (0 is the first): 0 at the first step, 1 at the last."""
    return min(1.0, step / (total - 1)) if total > 1 else 0.0


class RoutingCallback(TrainerCallback):
    """Before each step sets temperature and rate; after it lets the thresholds see the step's decisions.

    Attributes:
        temperature: of the step now running.
        rate: asked for at the step now running (0 without routing).
        done: share of the run at that step, by the clock of its schedules.
    """

    def __init__(
        self, model: nn.Module, config: ObjectiveConfig | SkippingObjectiveConfig, pace: Pace | None = None
    ) -> None:
        self.modules, self.handle, self.pace = routings_of(model), find_handle(model), pace or Pace(None)
        self.temperature_schedule = config.temperature
        self.rate_schedule = config.rate.towards(self.modules[0].config.rate if self.modules else 0.0)
        self.done = 0.0
        self.temperature = config.temperature.start
        self.rate = 0.0
        self._counts: dict[str, Tensor] = {}
        self._aside: list[Tensor] | None = None

    def lay_aside(self) -> None:
        """Keep the thresholds that training goes by, as others are to be served: the next step has its own again."""
        self._put_back()
        self._aside = [module.thresholds.value.clone() for module in self._trained_by_value]

    def _put_back(self) -> None:
        for module, value in zip(self._trained_by_value, self._aside or (), strict=self._aside is not None):
            module.thresholds.value.copy_(value)
        self._aside = None

    @property
    def _trained_by_value(self) -> list[Routing]:
        return [module for module in self.modules if module.config.budget != "quantile"]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint's weights do not say, as plain numbers."""
        return {"thresholds": None if self._aside is None else [value.tolist() for value in self._aside]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        aside = state["thresholds"]
        self._aside = None if aside is None else [torch.tensor(value) for value in aside]

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        self._put_back()
        self._counts.clear()
        self.done = progress(self.pace.after(state.global_step), state.max_steps)
        self.temperature = self.temperature_schedule.value(self.done)
        if self.handle is not None and self.modules:
            self.rate = self.rate_schedule.value(self.done)
            self.handle.set_temperature(self.temperature)
            self.handle.set_rate(self.rate)

    @torch.no_grad()
    def observe(self, decision: RouteDecision) -> None:
        """Count the decisions of one (micro-)batch of the step."""
        for site, counts in zip(decision.sites, decision.counts(), strict=True):
            self._counts[site] = self._counts[site] + counts if site in self._counts else counts

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        for module in self.modules:
            if all(site in self._counts for site in module.sites):
                counts = torch.stack([self._counts[site] for site in module.sites])
                module.thresholds.update(counts, module.rate)


def trained_rate(log_history: Sequence[Mapping[str, float]]) -> float | None:
    """The rate of training itself, noise and all: mean over sites and the last tenth of the curve; None without."""
    points = [point for point in log_history if "lm_loss" in point]
    last = points[-max(1, len(points) // 10) :]
    rates = [value for point in last for name, value in point.items() if name.startswith("rate/")]
    return sum(rates) / len(rates) if rates else None
