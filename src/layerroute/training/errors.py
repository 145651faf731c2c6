"""Runs that cannot go on, told in one line. The command line exits with code 1 for them."""

from pathlib import Path


class TrainingFailed(RuntimeError):
    """A run stopped before its end; the message says at which step and from where it can go on."""


class TrainingDiverged(TrainingFailed):
    """The loss or the gradient norm is not finite. The optimizer step was not taken."""

    def __init__(self, quantity: str, value: float, *, step: int, checkpoint: Path | None) -> None:
        self.step, self.checkpoint = step, checkpoint
        where = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was saved yet"
        super().__init__(
            f"the {quantity} is {value} at step {step}, so the step was not taken; {where}; "
            "a lower train.learning_rate or train.precision fp32 may help"
        )
