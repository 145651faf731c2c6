"""What a run trains: the one seam between the training loop and the capabilities."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerroute.data.prepare import PreparedData
from layerroute.data.recall.prepared import RecallData
from layerroute.evaluation.copies import copies_section
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.precision import ChosenPrecision, autocast
from layerroute.recipe import Recipe
from layerroute.routing import find_handle, routings_of
from layerroute.routing.held_out import calibrate_thresholds
from layerroute.routing.module import Routing
from layerroute.training.objective import RoutedLoss
from layerroute.training.optimization import ParameterGroup
from layerroute.training.samples import (
    Batch,
    Boundaries,
    RecallSamples,
    ThresholdWindows,
    TrainingWindows,
    validation_batches,
)


def parameter_section(model: nn.Module, by_part: dict[str, int]) -> dict[str, Any]:
    """The record's ``parameters``."""
    parameters = list(model.parameters())
    trainable = sum(value.numel() for value in parameters if value.requires_grad)
    return {"total": sum(value.numel() for value in parameters), "trainable": trainable, "by_part": by_part}


class Trainee(ABC):
    """A recipe's model and data, and what is particular to its capability.

    Attributes:
        data: made by ``read``.
        model, device, precision: set by ``build``.
        parameters: the record's section of that name; set by ``build``.
    """

    told_by: ClassVar[Boundaries] = "document_ids"
    """What tells the model where packed documents begin."""

    own_weights: ClassVar[bool] = False
    """Whether checkpoints hold what ``write_weights`` writes, and not the whole model as transformers does."""

    data: PreparedData | RecallData
    model: PreTrainedModel
    device: torch.device
    precision: ChosenPrecision
    parameters: dict[str, Any]

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def read(self, *, progress: bool) -> None:
        """Prepare the data."""

    @abstractmethod
    def build(self, *, device: torch.device, precision: ChosenPrecision, tell: Callable[[str], None]) -> None:
        """Make the model; ``tell`` takes lines for the user."""

    def rebuild(self, state: Mapping[str, Tensor]) -> None:
        """Put a whole model with these weights in the place of one that is spread over several processes."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            self.build(device=self.device, precision=self.precision, tell=lambda line: None)
        self.model.load_state_dict(state)
        self.model.to(device)  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of data and model."""
        return self.data.tokenizer

    @property
    def boundaries(self) -> Boundaries | None:
        """The input that keeps documents apart, None where they need not be."""
        return self.told_by if self.recipe.train.separate_documents else None

    def windows(self) -> Dataset[Batch]:
        """The samples of the run."""
        train = self.recipe.train
        samples, seed = train.max_steps * train.batch_size, self.recipe.seed
        if isinstance(self.data, RecallData):
            return RecallSamples(self.data, samples=samples, batch_size=train.batch_size, seed=seed)
        return TrainingWindows(
            self.data.train,
            samples=samples,
            batch_size=train.batch_size,
            seed=seed,
            boundaries=self.boundaries,
        )

    def validation(self) -> list[Batch]:
        """The fixed batches of every evaluation."""
        train = self.recipe.train
        sequences, size = train.evaluation_sequences, train.evaluation_batch_size
        return validation_batches(self.data, sequences=sequences, batch_size=size, boundaries=self.boundaries)

    @cached_property
    def threshold_text(self) -> ThresholdWindows:
        """The held-out text on which thresholds are set."""
        train = self.recipe.train
        return ThresholdWindows.of(self.data, train, train.threshold_tokens or 1, self.boundaries)

    def in_precision(self) -> AbstractContextManager[object]:
        """The autocast context of the run."""
        return autocast(self.precision.name, self.device)

    @abstractmethod
    def loss(self) -> RoutedLoss:
        """Of a batch."""

    def groups(self) -> list[ParameterGroup] | None:
        """Parameters with rates of their own, None for one group of all."""
        return None

    def write_weights(self, model: nn.Module, folder: Path) -> None:
        """Write the model's part of a checkpoint; only where ``own_weights``."""
        raise NotImplementedError

    def read_weights(self, model: nn.Module, folder: Path) -> None:
        """Put back what ``write_weights`` wrote."""
        raise NotImplementedError

    @property
    @abstractmethod
    def asked_rate(self) -> float | None:
        """The rate that a learned router is asked for; None without one, or where it may take what it likes."""

    def before_evaluation(self) -> None:
        """Ask for the recipe's rate, and set the thresholds in inference mode, so that this rate is the rate served.

        Training has noise, and a rate of its own on the way there: what it made of thresholds serves another rate. All
        evaluations are at one rate, else the best of them would be one of the early ones, at which more tokens run. The
        next step has its own rate again.
        """
        self.ask_rate()
        routings = [routing for routing in routings_of(self.model) if routing.router is not None]
        if routings and self.recipe.train.threshold_tokens and self.asked_rate is not None:
            self.set_thresholds(routings, partial(self.threshold_text.run, self.model, self.in_precision))

    def ask_rate(self) -> None:
        """Ask routers and controls for the rate of the recipe, whatever training asks of them at this step."""
        handle = find_handle(self.model)
        if handle is not None and (routings := handle.all_routings()):
            handle.set_rate(routings[0].config.rate)

    def set_thresholds(self, routings: Sequence[Routing], forward: Callable[[], None]) -> None:
        """Set those of ``routings``, which are all that learn, by what ``forward`` shows them."""
        calibrate_thresholds(routings, forward)

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the model as users load it."""

    @abstractmethod
    def describe(self, micro_batch: int) -> list[str]:
        """Lines of the summary, before the run starts."""

    def static_sections(self) -> dict[str, Any]:
        """Sections of the record that are known before the first step: parameters, flops, data, model_config."""
        return {
            "parameters": self.parameters,
            "flops": self.flops_section(None, None),
            "data": self.data.describe(),
            "model_config": self.model.config.to_dict(),
        }

    def routing_section(self, statistics: RoutingStatistics) -> dict[str, Any]:
        """The record's ``routing``: where tokens went at the last evaluation, and how it was decided."""
        return {**statistics.record(), "asked_rate": self.asked_rate, **self.decided_by(statistics)}

    @abstractmethod
    def decided_by(self, statistics: RoutingStatistics) -> dict[str, Any]:
        """What the record's ``routing`` says of this capability's routers: router, control, estimator, context."""

    @abstractmethod
    def flops_section(self, statistics: RoutingStatistics | None, executed: float | None) -> dict[str, Any]:
        """The record's ``flops``: of masked execution, at the measured rate, and executed."""

    def measure(self) -> dict[str, Any]:
        """Further sections of the record, measured on the last model: ``copies``, if the recipe has a rule for them."""
        rule = self.recipe.data.copies
        if rule is None:
            return {}
        found = copies_section(
            self.model, self.validation(), self.tokenizer, rule, precision=self.in_precision
        )
        return {"copies": found}

    def bigram_loss(self) -> float | None:
        """What a bigram model of the same training tokens reaches, where that is a floor worth knowing."""
        return None
