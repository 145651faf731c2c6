"""Schedules and thresholds of the routing modules of a model, whatever the model."""

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerroute.routing import RouteDecision, Routing, Schedule
from layerroute.training.configuration import ObjectiveConfig, ScheduleConfig


def routing_modules(model: nn.Module) -> list[Routing]:
    """All routing modules of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, Routing)]


def progress(step: int, total: int) -> float:
    """Share of the run that is done at ``step`` (0 is the first): 0 at the first step, 1 at the last."""
    return min(1.0, step / (total - 1)) if total > 1 else 0.0


def schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a recipe describes."""
    return Schedule(start=config.start, end=config.end, begin=config.begin, finish=config.finish)


class RoutingCallback(TrainerCallback):
    """Before each step sets temperature and rate; after it lets the thresholds see the step's decisions.

    Attributes:
        temperature: of the step now running.
        rate: asked for at the step now running (mean over routing modules; 0 without routing).
    """

    def __init__(self, model: nn.Module, config: ObjectiveConfig) -> None:
        self.modules = routing_modules(model)
        self.temperature_schedule = schedule(config.temperature)
        self.rate_schedules = [
            Schedule(
                start=module.config.rate if config.rate.start is None else config.rate.start,
                end=module.config.rate,
                begin=config.rate.begin,
                finish=config.rate.finish,
            )
            for module in self.modules
        ]
        self.temperature = self.temperature_schedule.start
        self.rate = 0.0
        self._counts: dict[str, Tensor] = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._counts.clear()
        done = progress(state.global_step, state.max_steps)
        self.temperature = self.temperature_schedule.value(done)
        rates = [schedule.value(done) for schedule in self.rate_schedules]
        self.rate = sum(rates) / len(rates) if rates else 0.0
        for module, rate in zip(self.modules, rates, strict=True):
            module.set_temperature(self.temperature)
            module.set_rate(rate)

    @torch.no_grad()
    def observe(self, decision: RouteDecision) -> None:
        """Count the decisions of one (micro-)batch of the step."""
        for site, counts in zip(decision.sites, decision.counts(), strict=True):
            self._counts[site] = self._counts[site] + counts if site in self._counts else counts

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        for module in self.modules:
            if all(site in self._counts for site in module.sites):
                counts = torch.stack([self._counts[site] for site in module.sites])
                module.thresholds.update(counts, module.rate)
