"""Recall tasks by name: ``recall:needle,pairs=4,filler=40``, made on the spot, for any model that reads text."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from layerroute.data.recall.configuration import Task
from layerroute.data.recall.text import TextRecall
from layerroute.errors import UserError, nearest

PREFIX = "recall:"


def recall_task(word: str) -> TextRecall:
    """What a word after ``--tasks`` means that begins with ``recall:``.

    Raises:
        UserError: no such task or option, one that comes twice, a value that is no whole number; the message names it.
    """
    kind, *options = word.removeprefix(PREFIX).split(",")
    kinds: dict[str, Task] = {name: name for name in get_args(Task)}
    if kind not in kinds:
        raise UserError(f"--tasks: {word}: there is no recall task {kind!r}.{nearest(kind, kinds)}")
    known = [field.name for field in fields(TextRecall) if field.name != "task"]
    values: dict[str, int] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in known:
            raise UserError(
                f"--tasks: {word}: {name!r} is not an option of recall tasks.{nearest(name, known)}"
            )
        if name in values:
            raise UserError(f"--tasks: {word}: {name} comes twice")
        if not value.isdecimal():
            raise UserError(f"--tasks: {word}: {name} is {value!r}; it must be a whole number")
        values[name] = int(value)
    return TextRecall(task=kinds[kind], **values)
