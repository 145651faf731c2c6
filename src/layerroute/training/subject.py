"""What a run trains: the one seam between the training loop and the two capabilities."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerroute.data.prepare import PreparedData
from layerroute.evaluation.routing_statistics import RoutingStatistics
from layerroute.precision import ChosenPrecision
from layerroute.recipe import Recipe
from layerroute.training.callbacks.routing import RoutingCallback
from layerroute.training.objective import RoutedLoss
from layerroute.training.optimization import ParameterGroup
from layerroute.training.trainer import CheckpointWeights
from layerroute.training.windows import Boundaries, TrainingWindows, evaluation_batches

Batch = dict[str, Tensor]


class Subject(ABC):
    """A recipe's model and data, and what is particular to its capability.

    Args:
        recipe: resolved.

    Attributes:
        data: made by ``read``.
        model, device, precision: set by ``build``.
    """

    told_by: ClassVar[Boundaries] = "document_ids"
    """What tells the model where packed documents begin."""

    data: PreparedData
    model: PreTrainedModel
    device: torch.device
    precision: ChosenPrecision

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def plain(self) -> dict[str, Any]:
        """The resolved recipe as plain values, defaults written out: what the record holds and fingerprints."""

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

    def windows(self) -> Dataset[Batch]:
        """The samples of the run."""
        train = self.recipe.train
        return TrainingWindows(
            self.data.train,
            samples=train.max_steps * train.batch_size,
            batch_size=train.batch_size,
            seed=self.recipe.seed,
            separate_documents=train.separate_documents,
            told_by=self.told_by,
        )

    def validation(self) -> list[Batch]:
        """The fixed batches of every evaluation."""
        train = self.recipe.train
        return evaluation_batches(
            self.data.validation,
            sequences=train.evaluation_sequences,
            batch_size=train.evaluation_batch_size,
            separate_documents=train.separate_documents,
            told_by=self.told_by,
        )

    @abstractmethod
    def loss(self) -> RoutedLoss:
        """Of a batch."""

    @abstractmethod
    def routing(self) -> RoutingCallback:
        """The schedules of the model's routing."""

    def groups(self) -> list[ParameterGroup] | None:
        """Parameters with rates of their own, None for one group of all."""
        return None

    def weights(self) -> CheckpointWeights | None:
        """What writes the model's part of a checkpoint, None for transformers' own way."""
        return None

    def before_evaluation(self) -> None:
        """Called before every evaluation."""
        return

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model as users load it, replacing what is there in one move."""

    @abstractmethod
    def describe(self, *, micro_batch: int, device: torch.device, precision: ChosenPrecision) -> list[str]:
        """Lines of the summary, before the run starts."""

    @abstractmethod
    def static_sections(self) -> dict[str, Any]:
        """Sections of the record that are known before the first step: parameters, flops, data, model_config."""

    @abstractmethod
    def routing_section(self, statistics: RoutingStatistics) -> dict[str, Any]:
        """The record's ``routing``."""

    @abstractmethod
    def flops_section(self, statistics: RoutingStatistics | None, executed: float) -> dict[str, Any]:
        """The record's ``flops``."""

    def measure(self, precision: Callable[[], AbstractContextManager[object]]) -> dict[str, Any]:
        """Further sections of the record, measured on the last model; ``precision`` makes its autocast context."""
        del precision
        return {}

    def bigram_loss(self) -> float | None:
        """What a bigram model of the same training tokens reaches, where that is a floor worth knowing."""
        return None
