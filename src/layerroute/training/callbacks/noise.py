"""Noise of a distributed run."""

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class NoiseCallback(TrainerCallback):
    """Gives every process of a distributed run noise of its own: one seed for all would repeat it on each part.

    A single process keeps the noise that follows from the seed. A resumed run takes up its random numbers after this.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if args.world_size > 1:
            torch.manual_seed(self.seed * 1_000_003 + args.process_index)
