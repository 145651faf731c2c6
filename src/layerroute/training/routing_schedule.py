"""Temperature, rate and thresholds of a model's routing modules while it trains, whatever the model."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from layerroute.routing import RouteDecision, Routing, RoutingConfig, Schedule
from layerroute.skipping.router import LayerRouter
from layerroute.training.configuration import RateScheduleConfig, ScheduleConfig


def routing_modules(model: nn.Module) -> list[Routing]:
    """All routing modules of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Routing)]


def rated(model: nn.Module) -> list[Routing | LayerRouter]:
    """What rates are set on: a pretrained model's one router (its sites may have rates of their own), or all."""
    routers: list[Routing | LayerRouter] = [m for m in model.modules() if isinstance(m, LayerRouter)]
    return routers or [*routing_modules(model)]


def progress(step: int, total: int) -> float:
    """Share of the run that is done at ``step`` (0 is the first): 0 at the first step, 1 at the last."""
    return min(1.0, step / (total - 1)) if total > 1 else 0.0


class Schedules(Protocol):
    """What all objectives have: τ over the run, and the way to the modules' own rates."""

    temperature: ScheduleConfig
    rate: RateScheduleConfig


class RoutingCallback(TrainerCallback):
    """Before each step sets temperature and rate; after it lets the thresholds see the step's decisions.

    Attributes:
        temperature: of the step now running.
        rate: asked for at the step now running (mean over routing modules; 0 without routing).
        done: share of the run at that step.

    Args:
        model: with its routing modules.
        config: the recipe's objective.
    """

    def __init__(self, model: nn.Module, config: Schedules) -> None:
        temperature, rate = config.temperature, config.rate
        self.modules, self.rated = routing_modules(model), rated(model)
        self.temperature_schedule = Schedule(
            start=temperature.start,
            end=temperature.end,
            begin=temperature.begin,
            finish=temperature.finish,
        )
        self.rate_schedules = [
            Schedule(
                start=own if rate.start is None else rate.start, end=own, begin=rate.begin, finish=rate.finish
            )
            for own in map(_own_rate, self.rated)
        ]
        self.done = 0.0
        self.temperature = temperature.start
        self.rate = 0.0
        self._counts: dict[str, Tensor] = {}

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        self._counts.clear()
        self.done = progress(state.global_step, state.max_steps)
        self.temperature = self.temperature_schedule.value(self.done)
        rates = [schedule.value(self.done) for schedule in self.rate_schedules]
        self.rate = sum(rates) / len(rates) if rates else 0.0
        for module, rate in zip(self.rated, rates, strict=True):
            module.set_temperature(self.temperature)
            module.set_rate(rate)

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


def _own_rate(module: Routing | LayerRouter) -> float:
    config = module.config
    return config.rate if isinstance(config, RoutingConfig) else config.routing.rate
