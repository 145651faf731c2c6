"""Lists of tasks as YAML files: names that the harness knows, or JSON Lines files, each with its shots. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerroute.errors import UserError
from layerroute.evaluation.recall_tasks import PREFIX, recall_task
from layerroute.recipe import find_recipe, yaml_reader
from layerroute.recipe.conversion import build_file


@dataclass(kw_only=True, frozen=True)
class TaskConfig:
    """One task.

    Attributes:
        task: a name that lm-evaluation-harness knows, a JSON Lines file relative to the list, or a recall task
            (``recall:needle,pairs=4``).
        shots: examples before each question; default the task's own number.
    """

    task: str
    shots: int | None = None

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 0:
            raise UserError(f"tasks: shots of {self.task} is {self.shots}; it must be 0 or more")


@dataclass(kw_only=True, frozen=True)
class TaskListConfig:
    """What a file with ``tasks`` says: names, or each with its shots."""

    tasks: list[str | TaskConfig]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("tasks is empty; name a task")


def load_task_list(path: str | Path) -> list[TaskConfig]:
    """Read a list of tasks, or the shipped one of that name.

    Raises:
        UserError: the file cannot be read, or holds something else; the message names it.
    """
    file = find_recipe(path)
    config = build_file(TaskListConfig, yaml_reader.read_mapping(file), file, "task lists")
    found = []
    for entry in config.tasks:
        task = TaskConfig(task=entry) if isinstance(entry, str) else entry
        name = str(file.parent / task.task) if is_file_name(task.task) else task.task
        found.append(TaskConfig(task=name, shots=task.shots))
    return found


def expand(words: Sequence[str], shots: int | None = None) -> list[TaskConfig]:
    """Tasks for what was asked for: lists become their tasks. ``shots``, where given, is for all of them.

    Raises:
        UserError: see ``load_task_list``; or a task that comes twice.
    """
    found: list[TaskConfig] = []
    for word in words:
        if is_list_name(word):
            found += load_task_list(word)
        else:
            found.append(TaskConfig(task=word))
    names = [task.task for task in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--tasks: {name} comes twice")
    return found if shots is None else [TaskConfig(task=task.task, shots=shots) for task in found]


def make_tasks(tasks: Sequence[str], *, taken: Sequence[str] = ()) -> list[Any]:
    """What the harness is given for names of tasks: made from a file, made on the spot, or the name itself.

    No two have the same name, and none of a file is ``taken``: scores are kept by it. Files of the same name are told
    apart by their folders.

    Raises:
        UserError: a file that is not a task; one task twice.
    """
    from layerroute.evaluation.local_tasks import distinct_names, local_task, task_of_rows

    recalls = {task: recall_task(task) for task in tasks if task.startswith(PREFIX)}
    files = [task for task in tasks if task not in recalls and is_file_name(task)]
    others = [recalls[task].name if task in recalls else task for task in tasks if task not in files]
    for name in others:
        if others.count(name) > 1:
            raise UserError(f"--tasks: {name} comes twice")
    names = distinct_names([Path(file) for file in files], [*others, *taken])
    named = dict(zip(files, names, strict=True))
    made: list[Any] = []
    for task in tasks:
        if task in named:
            made.append(local_task(task, named[task]))
        elif task in recalls:
            made.append(task_of_rows(recalls[task].name, recalls[task].rows()))
        else:
            made.append(task)
    return made


def is_file_name(task: str) -> bool:
    """Whether a task is a file of records (JSON Lines, JSON, CSV, TSV, parquet), and no name of the harness."""
    from layerroute.evaluation.local_tasks import is_task_file

    return not task.startswith(PREFIX) and is_task_file(task)


def is_list_name(word: str) -> bool:
    """Whether a word means a list of tasks: a YAML file, or a shipped list (``evaluation/original``)."""
    return Path(word).suffix in (".yaml", ".yml") or word.removeprefix("recipes/").startswith("evaluation/")
