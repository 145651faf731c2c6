"""The curves of a run as JSON lines."""

import json
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerroute.integrity import replace_text

TRAIN_MARK, VALIDATION_MARK = "lm_loss", "eval_loss"
_NOT_OF_THE_CURVE = ("epoch",)


class CurvesCallback(TrainerCallback):
    """Writes ``curves.jsonl``: one object a line, with ``step`` and ``split`` (``train`` or ``validation``).

    When a run goes on from a checkpoint, points after the checkpoint's step are dropped first: they will be
    written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            keep_until(self.path, state.global_step)
            self._file = self.path.open("a", encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        point = curve_point(state.global_step, logs or {})
        if self._file is not None and point is not None:
            self._file.write(json.dumps(point) + "\n")
            self._file.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; also called when training ends with an error."""
        if self._file is not None:
            self._file.close()
            self._file = None


def curve_point(step: int, logs: dict[str, Any]) -> dict[str, Any] | None:
    """A line of the curves from what the Trainer logs, None if that is no curve point."""
    values = {name: value for name, value in logs.items() if name not in _NOT_OF_THE_CURVE}
    if VALIDATION_MARK in values:
        return {"step": step, "split": "validation"} | {
            name.removeprefix("eval_"): value for name, value in values.items()
        }
    if TRAIN_MARK in values:
        return {"step": step, "split": "train"} | values
    return None


def keep_until(path: Path, step: int) -> None:
    """Drop the points after ``step``, and a line that was not written to its end."""
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to nowhere: what it names is not to be made
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if point["step"] <= step:
            kept.append(line)
    replace_text(path, "".join(f"{line}\n" for line in kept))
