"""The folder of a run: a sign of life in it, and a stop where it is gone."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerroute.liveness import Heartbeat


class FolderCallback(TrainerCallback):
    """Touches the run's lock file, and looks whether the folder is still there before anything is written.

    Args:
        folder: of the run.
        check: raises OSError if the folder is not the one that the run began in.
    """

    def __init__(self, folder: Path, check: Callable[[], None]) -> None:
        self.heartbeat, self.check = Heartbeat(folder), check

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.heartbeat.beat()
        if control.should_evaluate or control.should_save:
            self.check()
