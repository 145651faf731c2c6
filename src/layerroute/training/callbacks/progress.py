"""What the terminal shows: step, loss, rates by site, tokens per second, time left."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from layerroute.training.callbacks.wording import describe, rates


class ProgressCallback(TrainerCallback):
    """A moving bar on a terminal; one plain line a curve point where the output is a file or a pipe."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started, self._first_step = 0.0, 0
        self._last: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._started, self._first_step = time.perf_counter(), state.global_step
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._bar is not None and self._task is not None:
            text = describe(self._last, self.seconds_left(state))
            self._bar.update(self._task, completed=state.global_step, description=text)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        width = len(str(state.max_steps))
        step = f"step {state.global_step:>{width}}/{state.max_steps}"
        if "eval_loss" in logs:
            values = {name.removeprefix("eval_"): value for name, value in logs.items()}
            accuracy = f"accuracy {values['accuracy']:.1%}"
            text = f"{step}  validation loss {values['loss']:.4f}  {accuracy}{rates(values)}"
            self.console.print(text)
        elif "lm_loss" in logs:
            self._last = logs
            if self._bar is None:
                text = f"{step}  {describe(logs, self.seconds_left(state))}"
                self.console.print(text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; also called when training ends with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def seconds_left(self, state: TrainerState) -> float | None:
        """Time left at the mean speed of this process, None before its first step."""
        done = state.global_step - self._first_step
        if done <= 0:
            return None
        return (time.perf_counter() - self._started) / done * (state.max_steps - state.global_step)
