"""The held-out text on which thresholds are set."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerroute.data.prepare import PreparedData
from layerroute.training.configuration import TrainConfig
from layerroute.training.windows import Boundaries, evaluation_windows, model_inputs

_SALT = 1_000_003  # an order of the windows that no run's seed has


@dataclass(frozen=True, kw_only=True)
class ThresholdWindows:
    """Batches of windows that are neither evaluated on nor, as far as the text suffices, trained on.

    Attributes:
        batches: inputs of the model.
        split: ``validation``, if that has enough windows that no evaluation reads; else ``training``.
    """

    batches: list[dict[str, Tensor]]
    split: str

    @classmethod
    def of(
        cls, data: PreparedData, train: TrainConfig, tokens: int, *, told_by: Boundaries = "document_ids"
    ) -> "ThresholdWindows":
        """So many tokens, rounded up to windows; fewer if the text has no more."""
        length = data.train.sequence_length
        wanted = -(-tokens // length)
        read = set(evaluation_windows(data.validation, train.evaluation_sequences))
        free = [index for index in range(data.validation.windows()) if index not in read]
        if len(free) >= wanted:
            sequence, split = data.validation, "validation"
            chosen = [free[index * len(free) // wanted] for index in range(wanted)]
        else:
            sequence, split = data.train, "training"
            chosen = [int(index) for index in data.train.order(seed=_SALT, epoch=0)[:wanted]]
        size = train.evaluation_batch_size
        batches = [
            model_inputs(
                sequence,
                chosen[at : at + size],
                separate_documents=train.separate_documents,
                told_by=told_by,
            )
            for at in range(0, len(chosen), size)
        ]
        return cls(batches=batches, split=split)

    @torch.no_grad()
    def run(self, model: nn.Module, precision: Callable[[], AbstractContextManager[object]]) -> None:
        """One forward pass over all batches, in inference mode."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        try:
            for batch in self.batches:
                with precision():
                    model(**{name: value.to(device) for name, value in batch.items()}, use_cache=False)
        finally:
            model.train(was_training)
