"""The order of training windows: a function of (seed, position), so that the data position of a run is its step."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from layerroute.data.sequence import TokenSequence, require_windows
from layerroute.data.windows import evenly

Boundaries = Literal["document_ids", "position_ids"]


class TrainingWindows(Dataset[dict[str, Tensor]]):
    """All samples of a run, in order: sample ``i`` is the same for every batch size, machine and restart.

    The sequence is gone through as often as needed, each time in another order; no window comes twice before all have
    come once.

    Args:
        sequence: training tokens.
        samples: batch size × steps of the run.
        batch_size: of one optimizer step; the sequence must hold one batch at least.
        seed: of the order.
        separate_documents: also hand out ``told_by``, so that no token sees another document.
        told_by: ``document_ids`` (hybrid models), or ``position_ids`` that begin anew in each document: the sign of
            packed documents that transformers' own models know. Neither needs any padding.

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
        separate_documents: bool = False,
        told_by: Boundaries = "document_ids",
    ) -> None:
        require_windows(sequence, batch_size)
        self.sequence, self.samples, self.seed = sequence, samples, seed
        self.separate_documents, self.told_by = separate_documents, told_by
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.samples

    def window(self, position: int) -> int:
        """Index of the window that is sample ``position`` of the run."""
        epoch, place = divmod(position, self.sequence.windows())
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.sequence.order(seed=self.seed, epoch=epoch))
        return int(self._order[1][place])

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[dict[str, Tensor]]:
        batch = model_inputs(
            self.sequence,
            [self.window(p) for p in positions],
            separate_documents=self.separate_documents,
            told_by=self.told_by,
        )
        return [{name: value[row] for name, value in batch.items()} for row in range(len(positions))]


def model_inputs(
    sequence: TokenSequence,
    windows: list[int],
    *,
    separate_documents: bool,
    told_by: Boundaries = "document_ids",
) -> dict[str, Tensor]:
    """``input_ids`` (B, T) of some windows, and ``told_by`` (B, T) if documents are to be kept apart."""
    ids = sequence.batch(windows)
    inputs = {"input_ids": torch.from_numpy(ids)}
    if separate_documents:
        documents = sequence.document_ids(ids)
        own = documents if told_by == "document_ids" else _positions(documents)
        inputs[told_by] = torch.from_numpy(own)
    return inputs


def _positions(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, T) place of each token in its document, as far as that is in the window."""
    place = np.broadcast_to(np.arange(documents.shape[1]), documents.shape)
    begins = np.diff(documents, axis=1, prepend=documents[:, :1]) != 0
    return place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack windows into a batch; ``labels`` (B, T) default to ``input_ids``: the model shifts them."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {"labels": batch["input_ids"], **batch}


def evaluation_batches(
    sequence: TokenSequence,
    *,
    sequences: int,
    batch_size: int,
    separate_documents: bool = False,
    told_by: Boundaries = "document_ids",
) -> list[dict[str, Tensor]]:
    """Fixed batches for evaluation: ``sequences`` windows, evenly spaced over the split, always the same.

    Raises:
        UserError: if the split does not fill one window.
    """
    chosen = evaluation_windows(sequence, sequences)
    return [
        model_inputs(
            sequence,
            chosen[start : start + batch_size],
            separate_documents=separate_documents,
            told_by=told_by,
        )
        for start in range(0, len(chosen), batch_size)
    ]


def evaluation_windows(sequence: TokenSequence, sequences: int) -> list[int]:
    """Indices of the windows of every evaluation.

    Raises:
        UserError: if the split does not fill one window.
    """
    require_windows(sequence, 1)
    return evenly(sequence.windows(), sequences)
