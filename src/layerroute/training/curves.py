"""The curves of a run, as JSON lines and as a table of comma-separated values."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from layerroute.integrity import replace_text

TRAIN_MARK, VALIDATION_MARK = "lm_loss", "eval_loss"
_NOT_OF_THE_CURVE = ("epoch",)


class CurvesCallback(TrainerCallback):
    """Writes each curve point to ``curves.jsonl``, and the same numbers to ``curves.csv`` beside it.

    A point has ``step`` and ``split`` (``train`` or ``validation``). The table has a column for every name that any
    point has; a cell whose point has no such value is empty. When a run goes on from a checkpoint, points after the
    checkpoint's step are dropped first: they will be written again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.table = path, path.with_suffix(".csv")
        self._columns: list[str] = []
        self._open = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        if state.is_world_process_zero:
            points = keep_until(self.path, state.global_step)
            self._open = True
            self._rewrite_table(points)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **_: object
    ) -> None:
        point = curve_point(state.global_step, logs or {})
        if not self._open or point is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        if point.keys() <= {*self._columns}:
            with self.table.open("a", encoding="utf-8", newline="") as file:
                file.write(self._rows([point]))
        else:  # a value that no earlier point had: the head of the table changes
            self._rewrite_table(read_points(self.path))

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write nothing more; also called when training ends with an error."""
        self._open = False

    def _rewrite_table(self, points: list[dict[str, Any]]) -> None:
        self._columns = list(dict.fromkeys(name for point in points for name in point))
        head = dict(zip(self._columns, self._columns, strict=True))
        replace_text(self.table, self._rows([head, *points]) if points else "")

    def _rows(self, points: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(points)
        return text.getvalue()


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


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a curve file, without a line that was not written to its end."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            points.append(json.loads(line))
        except ValueError:
            continue
    return points


def keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the points after ``step``, and a line that was not written to its end; returns what is kept."""
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to nowhere: what it names is not to be made
        return []
    kept = [point for point in read_points(path) if point["step"] <= step]
    replace_text(path, "".join(f"{json.dumps(point)}\n" for point in kept))
    return kept
