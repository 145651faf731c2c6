"""What the terminal shows: step, loss, rates by site, tokens per second, time left."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerState


class ProgressCallback(TrainerCallback):
    """A moving bar on a terminal; one plain line a curve point where the output is a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._started, self._first_step = 0.0, 0
        self._last: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        self._started, self._first_step = time.perf_counter(), state.global_step
        if state.is_world_process_zero and self.console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20))
            text = TextColumn("{task.description}")
            self._bar = Progress(*columns, text, console=self.console, transient=True)
            self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
        if self._bar is not None:
            text = describe(self._last, self.seconds_left(state))
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, description=text)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **_: object
    ) -> None:
        logs = logs or {}
        if not state.is_world_process_zero:
            return
        step = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "eval_loss" in logs:
            values = {name.removeprefix("eval_"): value for name, value in logs.items()}
            reached = f"validation loss {values['loss']:.4f}  accuracy {values['accuracy']:.1%}"
            self.console.print(f"{step}  {reached}{rates(values)}")
        elif "lm_loss" in logs:
            self._last = logs
            if self._bar is None:
                self.console.print(f"{step}  {describe(logs, self.seconds_left(state))}")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: object) -> None:
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


def describe(logs: dict[str, Any], left: float | None) -> str:
    """One line about a curve point."""
    parts = []
    if logs:
        parts.append(f"loss {logs['loss']:.4f}{rates(logs)}")
        if "tokens_per_second" in logs:
            parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if left is not None:
        parts.append(f"ETA {duration(left)}")
    return "  ".join(parts)


def rates(logs: dict[str, Any]) -> str:
    """``"  rate layer1.mixer 48% layer2.mixer 52%"``, or mean and range of many sites; empty without routing."""
    found = {name.removeprefix("rate/"): value for name, value in logs.items() if name.startswith("rate/")}
    if not found:
        return ""
    if len(found) > 4:
        values = list(found.values())
        return f"  rate {sum(values) / len(values):.0%} ({min(values):.0%}-{max(values):.0%}, {len(values)} sites)"
    return "  rate " + " ".join(f"{site} {value:.0%}" for site, value in found.items())


def duration(seconds: float) -> str:
    """``75`` → ``"1m15s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
