"""Attention routing on recall data: sequences are made as they are needed, and answers alone count."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.data import Dataset

from layerroute.data.recall.prepared import RecallData
from layerroute.evaluation.recall import recall_by_distance, recall_by_length
from layerroute.training.hybrid import HybridSubject
from layerroute.training.models import Vocabulary, model_config
from layerroute.training.samples import (
    Batch,
    RecallSamples,
    answers_batch,
    split_rows,
    validation_batches,
)
from layerroute.training.thresholds import ThresholdWindows


class RecallSubject(HybridSubject):
    """See ``Subject``. Loss and accuracy of training and evaluation are those of the answers."""

    def read(self, *, progress: bool) -> None:
        """Nothing is read; the task gives the vocabulary."""
        del progress
        self.made = RecallData(self.recipe.data)
        self.data = self.made  # type: ignore[assignment]  # it has all that is asked of data beside windows of text
        size, end = self.made.vocabulary_size, self.made.end_of_text
        self.config = model_config(self.recipe.model, Vocabulary(size=size, end_of_text=end, padding=end))

    def windows(self) -> Dataset[Batch]:
        """New sequences for every step."""
        train = self.recipe.train
        samples = train.max_steps * train.batch_size
        return RecallSamples(self.made, samples=samples, batch_size=train.batch_size, seed=self.recipe.seed)

    def validation(self) -> list[Batch]:
        """The same sequences at every evaluation, with all pairs."""
        train = self.recipe.train
        return validation_batches(
            self.made, sequences=train.evaluation_sequences, batch_size=train.evaluation_batch_size
        )

    def threshold_windows(self, tokens: int) -> ThresholdWindows:
        """Sequences that nothing else reads."""
        rows = -(-tokens // self.recipe.data.sequence_length)
        batch = {"input_ids": answers_batch(*self.made.held_out(rows))["input_ids"]}
        size = self.recipe.train.evaluation_batch_size
        return ThresholdWindows(batches=split_rows(batch, size), split="generated")

    def measure(self, precision: Callable[[], AbstractContextManager[object]]) -> dict[str, Any]:
        """``recall``: by length and by distance, and what blind guessing would reach."""
        train, task = self.recipe.train, self.made.task
        rows, size = train.evaluation_sequences, train.evaluation_batch_size
        return {
            "recall": {
                "task": task.task,
                "pairs": task.pairs,
                "chance": 1 / task.values,
                "by_length": recall_by_length(
                    self.model,
                    self.made,
                    task.evaluation_multiples,
                    rows=rows,
                    batch_size=size,
                    precision=precision,
                ),
                "by_distance": recall_by_distance(
                    self.model, self.made, rows=rows, batch_size=size, precision=precision
                ),
            }
        }

    def bigram_loss(self) -> float | None:
        """None: what is recalled is drawn anew in every sequence, and pairs of tokens say nothing about it."""
        return None
