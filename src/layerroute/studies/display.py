"""The live table of a study, and its plain lines where no terminal is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from layerroute.studies.board import RunState
from layerroute.studies.session import Session

_STYLES = {"completed": "green", "failed": "red", "running": "bold", "waiting": "dim"}
_ORDER = ("running", "failed", "waiting", "completed")
_TAIL = 4096  # bytes: the last line of a curve lies within


class StudyTable:
    """A table of the study's runs that fits the terminal: running ones first, then failed, waiting, completed."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.states: Mapping[str, RunState] = {}
        self._began = datetime.now()
        self._at_start: int | None = None

    def update(self, states: Mapping[str, RunState]) -> None:
        """Show these states from now on."""
        if self._at_start is None:
            self._at_start = sum(state.over for state in states.values())
        self.states = states

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [name.rpartition(".")[2] for name in self.session.plan.config.objectives]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for label in ("Run", "State", "Step"):
            table.add_column(label, no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("Time", justify="right", no_wrap=True)
        table.add_column("Attempts", justify="right")
        rows = sorted(self.states.values(), key=lambda state: _ORDER.index(state.status))
        room = max(3, (options.max_height or console.height) - 6)
        for state in rows[:room]:
            table.add_row(*self._cells(state, len(names)), style=_STYLES[state.status])
        yield table
        if len(rows) > room:
            yield Text(f"… and {len(rows) - room} more", style="dim")
        yield Text(self.progress())

    def progress(self) -> str:
        """``12 of 48 runs over (1 failed), 2 running, about 0:41:00 left``."""
        states, planned = list(self.states.values()), self.session.plan.size()
        if self.session.plan.sampled:
            planned = len(states)
        over = sum(state.over for state in states)
        failed = sum(state.status == "failed" for state in states)
        running = sum(state.status == "running" for state in states)
        text = f"{over} of {planned} runs over{f' ({failed} failed)' if failed else ''}, {running} running"
        done = over - (self._at_start or 0)
        if done and over < planned:
            each = (datetime.now() - self._began) / done
            text += f", about {_clock(each * (planned - over))} left"
        return text

    def _cells(self, state: RunState, objectives: int) -> list[Text]:
        point = last_point(self.session.out / state.key) if state.status == "running" else {}
        values = [
            "" if state.values is None else f"{value:.5g}" for value in state.values or [0.0] * objectives
        ]
        if not values[0] and "lm_loss" in point:
            values[0] = f"({point['lm_loss']:.4g})"
        until = state.finished or datetime.now()
        time = _clock(until - state.started) if state.started and state.status != "waiting" else ""
        cells = [
            state.key,
            state.status if state.error is None else f"failed: {state.error}"[:48],
            f"{point['step']:g}" if "step" in point else "",
            *values,
            time,
            str(state.attempts or ""),
        ]
        return [Text(cell) for cell in cells]


class StudyLines:
    """One line on the console for every change of a run's state."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._seen: dict[str, tuple[str, int]] = {}

    def update(self, states: Mapping[str, RunState]) -> None:
        """Print what has changed since the last call."""
        for key, state in states.items():
            now = (state.status, state.attempts)
            if self._seen.get(key) == now:
                continue
            known = key in self._seen
            self._seen[key] = now
            if state.status == "waiting" and not known:
                continue
            text = f"{state.status:<9} {key}"
            if state.attempts > 1:
                text += f" (attempt {state.attempts})"
            if state.values is not None:
                text += f"  {' '.join(f'{value:.5g}' for value in state.values)}"
            if state.error:
                text += f"  {state.error}"
            self.console.print(Text(text))


def last_point(run: Path) -> dict[str, float]:
    """The latest point of a run's training curve, {} where there is none (yet)."""
    try:
        with (run / "curves.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            point = json.loads(line)
        except ValueError:
            continue  # being written just now, or cut at the front
        if isinstance(point, dict) and point.get("split") == "train":
            return {key: value for key, value in point.items() if isinstance(value, int | float)}
    return {}


def _clock(duration: timedelta) -> str:
    return str(timedelta(seconds=round(duration.total_seconds())))
