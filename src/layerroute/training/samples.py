"""What recall data are as samples of a run and as batches of its evaluation."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from layerroute.data.prepare import PreparedData
from layerroute.data.recall.prepared import RecallData
from layerroute.objectives.language_model import IGNORE
from layerroute.training.windows import Boundaries, evaluation_batches

Batch = dict[str, Tensor]


class RecallSamples(Dataset[Batch]):
    """All samples of a run on recall data, in order: sample ``i`` is the same for every machine and restart.

    Args:
        samples: batch size × steps of the run.
        batch_size: of one optimizer step: its rows have one number of pairs.
        seed: of the sequences.

    Raises:
        UserError: the sequence length is too short for the task.
    """

    def __init__(self, data: RecallData, *, samples: int, batch_size: int, seed: int) -> None:
        self.data, self.samples, self.batch_size, self.seed = data, samples, batch_size, seed
        self._latest: tuple[int, Batch] | None = None
        data.validation(1)  # a sequence that is too short is told before anything else is done

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, position: int) -> Batch:
        number, row = divmod(position, self.batch_size)
        if self._latest is None or self._latest[0] != number:
            batches = self.samples // self.batch_size
            found = self.data.training_batch(number, batches, rows=self.batch_size, seed=self.seed)
            self._latest = (number, answers_batch(*found))
        return {name: value[row] for name, value in self._latest[1].items()}


def answers_batch(ids: np.ndarray, answers: np.ndarray) -> Batch:
    """``input_ids`` and ``labels`` (N, T) in which only answers count."""
    tokens = torch.from_numpy(ids)
    return {"input_ids": tokens, "labels": tokens.masked_fill(~torch.from_numpy(answers), IGNORE)}


def split_rows(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into batches of at most ``size`` rows."""
    parts = {name: value.split(size) for name, value in batch.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


def validation_batches(
    data: PreparedData | RecallData,
    *,
    sequences: int,
    batch_size: int,
    separate_documents: bool = False,
    told_by: Boundaries = "document_ids",
) -> list[Batch]:
    """Fixed batches for evaluation, always the same; those of recall have ``labels`` of the answers alone."""
    if isinstance(data, RecallData):
        return split_rows(answers_batch(*data.validation(sequences)), batch_size)
    return evaluation_batches(
        data.validation,
        sequences=sequences,
        batch_size=batch_size,
        separate_documents=separate_documents,
        told_by=told_by,
    )
