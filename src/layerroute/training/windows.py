"""The order of training windows: a function of (seed, position), so that the data position of a run is its step."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from layerroute.data.sequence import TokenSequence, require_windows


class TrainingWindows(Dataset[dict[str, Tensor]]):
    """All samples of a run, in order: sample ``i`` is the same for every batch size, machine and restart.

    The sequence is gone through as often as needed, each time in another order; no window comes twice before all have
    come once.

    Args:
        sequence: training tokens.
        samples: batch size × steps of the run.
        batch_size: of one optimizer step; the sequence must hold one batch at least.
        seed: of the order.
        separate_documents: also hand out ``document_ids``, so that no token sees another document.

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
    ) -> None:
        require_windows(sequence, batch_size)
        self.sequence, self.samples, self.seed = sequence, samples, seed
        self.separate_documents = separate_documents
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
            self.sequence, [self.window(p) for p in positions], separate_documents=self.separate_documents
        )
        return [{name: value[row] for name, value in batch.items()} for row in range(len(positions))]


def model_inputs(
    sequence: TokenSequence, windows: list[int], *, separate_documents: bool
) -> dict[str, Tensor]:
    """``input_ids`` (B, T) of some windows, and ``document_ids`` (B, T) if documents are to be kept apart."""
    ids = sequence.batch(windows)
    inputs = {"input_ids": torch.from_numpy(ids)}
    if separate_documents:
        inputs["document_ids"] = torch.from_numpy(sequence.document_ids(ids))
    return inputs


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack windows into a batch; ``labels`` (B, T) default to ``input_ids``: the model shifts them."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return {"labels": batch["input_ids"], **batch}


def evaluation_batches(
    sequence: TokenSequence, *, sequences: int, batch_size: int, separate_documents: bool = False
) -> list[dict[str, Tensor]]:
    """Fixed batches for evaluation: ``sequences`` windows, evenly spaced over the split, always the same.

    Raises:
        UserError: if the split does not fill one window.
    """
    chosen = evaluation_windows(sequence, sequences)
    return [
        model_inputs(sequence, chosen[start : start + batch_size], separate_documents=separate_documents)
        for start in range(0, len(chosen), batch_size)
    ]


def evaluation_windows(sequence: TokenSequence, sequences: int) -> list[int]:
    """Indices of the windows of every evaluation.

    Raises:
        UserError: if the split does not fill one window.
    """
    require_windows(sequence, 1)
    total = sequence.windows()
    count = min(sequences, total)
    return [index * total // count for index in range(count)]
