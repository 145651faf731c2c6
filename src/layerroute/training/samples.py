"""The samples of a run: a function of (seed, position), so that the data position of a run is its step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from layerroute.data.prepare import PreparedData
from layerroute.data.recall.prepared import RecallData
from layerroute.data.sequence import TokenSequence, require_windows
from layerroute.data.windows import evenly
from layerroute.evaluation.perplexity import Autocast, forward
from layerroute.evaluation.recall import answers_batch
from layerroute.evaluation.texts import Batch, split_rows
from layerroute.training.configuration import TrainConfig
from layerroute.training.pace import Pace

Boundaries = Literal["document_ids", "position_ids"]
"""The input that tells a model where packed documents begin, without any padding: ``document_ids`` for hybrid models,
for transformers' own ``position_ids`` that begin anew in each document."""

_THRESHOLD_SEED = 1_000_003  # an order of the windows that no run's seed has


class TrainingWindows(Dataset[Batch]):
    """All samples of a run, in order: sample ``i`` is the same for every batch size, machine and restart.

    The sequence is gone through as often as needed, each time in another order; no window comes twice before all have
    come once.

    Args:
        batch_size: of one optimizer step; the sequence must hold one batch at least.
        boundaries: also hand out this input, so that no token sees another document.

    Raises:
        UserError: if the sequence is smaller than one batch.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        *,
        samples: int,
        batch_size: int,
        seed: int,
        boundaries: Boundaries | None = None,
    ) -> None:
        require_windows(sequence, batch_size)
        self.sequence, self.samples, self.seed, self.boundaries = sequence, samples, seed, boundaries
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.samples

    def window(self, position: int) -> int:
        """Index of the window that is sample ``position`` of the run."""
        epoch, place = divmod(position, self.sequence.windows())
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.sequence.order(seed=self.seed, epoch=epoch))
        return int(self._order[1][place])

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Batch]:
        batch = model_inputs(self.sequence, [self.window(p) for p in positions], self.boundaries)
        return [{name: value[row] for name, value in batch.items()} for row in range(len(positions))]


class RecallSamples(Dataset[Batch]):
    """All samples of a run on recall data, made as they are needed: as ``TrainingWindows``.

    A sample is one row of ``data.sequence_length`` tokens, or as many shorter rows as go into that.

    Args:
        batch_size: samples of one optimizer step: its rows have one number of pairs.

    Attributes:
        pace: the clock of the curriculum.

    Raises:
        UserError: the sequence length is too short for the task.
    """

    def __init__(self, data: RecallData, *, samples: int, batch_size: int, seed: int) -> None:
        self.data, self.samples, self.batch_size, self.seed = data, samples, batch_size, seed
        self.pace = Pace(None)
        self._latest: tuple[int, Batch] | None = None
        data.validation(1)  # a sequence that is too short is told before anything else is done

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, positions: list[int]) -> list[Batch]:
        return [row for position in positions for row in self._rows(position)]

    def _rows(self, position: int) -> list[Batch]:
        number, sample = divmod(position, self.batch_size)
        if self._latest is None or self._latest[0] != number:
            batches = self.samples // self.batch_size
            at = self.pace.for_batch(number)
            found = self.data.training_batch(number, batches, rows=self.batch_size, seed=self.seed, at=at)
            self._latest = (number, answers_batch(*found))
        batch = self._latest[1]
        each = len(batch["input_ids"]) // self.batch_size
        rows = range(sample * each, (sample + 1) * each)
        return [{name: value[row] for name, value in batch.items()} for row in rows]


def collate(rows: list[Batch]) -> Batch:
    """Stack samples into a batch; ``labels`` (B, T) default to ``input_ids``: the model shifts them."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {"labels": batch["input_ids"], **batch}


def model_inputs(sequence: TokenSequence, windows: Sequence[int], boundaries: Boundaries | None) -> Batch:
    """``input_ids`` (B, T) of some windows, and ``boundaries`` (B, T) if documents are to be kept apart."""
    ids = sequence.batch(windows)
    inputs = {"input_ids": torch.from_numpy(ids)}
    if boundaries is not None:
        documents = sequence.document_ids(ids)
        own = documents if boundaries == "document_ids" else _positions(documents)
        inputs[boundaries] = torch.from_numpy(own)
    return inputs


def _positions(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, T) place of each token in its document, as far as that is in the window."""
    place = np.broadcast_to(np.arange(documents.shape[1]), documents.shape)
    begins = np.diff(documents, axis=1, prepend=documents[:, :1]) != 0
    return place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)


def validation_batches(
    data: PreparedData | RecallData, *, sequences: int, batch_size: int, boundaries: Boundaries | None = None
) -> list[Batch]:
    """Fixed batches for evaluation, always the same; those of recall have ``labels`` of the answers alone.

    Raises:
        UserError: if the split does not fill one window.
    """
    if isinstance(data, RecallData):
        return split_rows(answers_batch(*data.validation(sequences)), batch_size)
    chosen = evaluation_windows(data.validation, sequences)
    return split_rows(model_inputs(data.validation, chosen, boundaries), batch_size)


def evaluation_windows(sequence: TokenSequence, sequences: int) -> list[int]:
    """Indices of the windows of every evaluation: evenly spaced over the split.

    Raises:
        UserError: if the split does not fill one window.
    """
    require_windows(sequence, 1)
    return evenly(sequence.windows(), sequences)


@dataclass(frozen=True, kw_only=True)
class ThresholdWindows:
    """The held-out text on which thresholds are set: not evaluated on nor, as far as the text suffices, trained on.

    Attributes:
        split: ``validation``, if that has enough windows that no evaluation reads; else ``training``, or
            ``generated``.
    """

    batches: list[Batch]
    split: str

    @classmethod
    def of(
        cls,
        data: PreparedData | RecallData,
        train: TrainConfig,
        tokens: int,
        boundaries: Boundaries | None = None,
    ) -> "ThresholdWindows":
        """So many tokens, rounded up to windows; fewer if the text has no more."""
        if isinstance(data, RecallData):  # sequences that nothing else reads
            rows = -(-tokens // data.config.sequence_length)
            inputs, split = {"input_ids": answers_batch(*data.held_out(rows))["input_ids"]}, "generated"
        else:
            wanted = -(-tokens // data.train.sequence_length)
            sequence, split, chosen = _unread_windows(data, train.evaluation_sequences, wanted)
            inputs = model_inputs(sequence, chosen, boundaries)
        return cls(batches=split_rows(inputs, train.evaluation_batch_size), split=split)

    def run(self, model: nn.Module, precision: Autocast) -> None:
        """One forward pass over all batches, in inference mode."""
        for batch in self.batches:
            forward(model, batch, precision)


def _unread_windows(data: PreparedData, evaluated: int, wanted: int) -> tuple[TokenSequence, str, list[int]]:
    read = set(evaluation_windows(data.validation, evaluated))
    free = [index for index in range(data.validation.windows()) if index not in read]
    if len(free) >= wanted:
        return data.validation, "validation", [free[at] for at in evenly(len(free), wanted)]
    order = data.train.order(seed=_THRESHOLD_SEED, epoch=0)[:wanted]
    return data.train, "training", [int(index) for index in order]
