"""Recall data in the place of prepared text: nothing is read, sequences are made when they are asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from layerroute.data.configuration import DataConfig
from layerroute.data.recall.configuration import END, RecallConfig
from layerroute.data.recall.tasks import Ids, Mask, generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 1  # raise it when the same configuration gives other sequences


@dataclass(frozen=True)
class RecallData:
    """The data of a recipe whose source is ``recall``, with what :class:`PreparedData` tells of text.

    Training sequences are new in every batch; validation sequences are always the same, and others than those.
    """

    config: DataConfig

    @property
    def task(self) -> RecallConfig:
        """The task."""
        assert self.config.recall is not None  # held by DataConfig
        return self.config.recall

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that decides on the sequences."""
        task = {key: value for key, value in asdict(self.task).items() if key != "evaluation_multiples"}
        for key, without in (("noise", None), ("writes", 1)):  # not in the fingerprints of older records
            if task[key] == without:
                del task[key]
        for key in ("begin", "shortest"):
            if task["curriculum"] is not None and not task["curriculum"][key]:
                del task["curriculum"][key]
        identity = [_FORMAT, task, self.config.sequence_length, self.config.split_seed]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @property
    def vocabulary_size(self) -> int:
        """Rows that an embedding needs."""
        return self.task.vocabulary_size

    @property
    def end_of_text(self) -> int:
        """Id of the end-of-text token. No sequence holds it."""
        return END

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Tokens as words between blanks: ``k3 v17 f0``."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        names = self.task.names()
        vocabulary = {name: number for number, name in enumerate(names)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names[END]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        special = dict.fromkeys(("eos_token", "bos_token", "pad_token", "unk_token"), names[END])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)

    def describe(self) -> dict[str, Any]:
        """The ``data`` section of a result record. Token counts are 0: nothing is stored."""
        task = self.task
        return {
            "source": f"recall: {task.task} of {task.pairs}, {self.config.sequence_length} tokens",
            "fingerprint": self.fingerprint,
            "tokenizer": "words",
            "vocabulary_size": self.vocabulary_size,
            "train_tokens": 0,
            "validation_tokens": 0,
        }

    def training_batch(
        self, batch: int, batches: int, *, rows: int, seed: int, at: int | None = None
    ) -> tuple[Ids, Mask]:
        """Batch ``batch`` of ``batches``: ids and answers, (k · rows, T) each; the curriculum decides on pairs and T.

        k is how often T goes into ``data.sequence_length``. ``at`` is how far the curriculum is, of ``batches``
        (default: ``batch``).
        """
        pairs = self.task.pairs_at(batch, batches, at=at)
        longest = self.config.sequence_length
        length = self.task.length_at(pairs, longest)
        return generate(
            self.task,
            rows * (longest // length),
            length,
            seed=f"train {self.config.split_seed} {seed} {batch}",
            pairs=pairs,
            queries=self._asked if self.task.noise is None else max(1, self.task.room(length, pairs)),
        )

    def held_out(self, rows: int) -> tuple[Ids, Mask]:
        """Sequences that are neither trained on nor evaluated with, to set thresholds on."""
        return self._all_pairs(rows, self.config.sequence_length, f"held out {self.config.split_seed}")

    def validation(self, rows: int, *, length: int | None = None) -> tuple[Ids, Mask]:
        """Held-out sequences with all pairs, the same at every call; ``length`` defaults to the training's."""
        length = self.config.sequence_length if length is None else length
        return self._all_pairs(rows, length, f"validation {self.config.split_seed} {length}")

    def _all_pairs(self, rows: int, length: int, seed: str) -> tuple[Ids, Mask]:
        return generate(self.task, rows, length, seed=seed, queries=self._asked)

    @property
    def _asked(self) -> int:
        return self.task.asked(self.config.sequence_length)
