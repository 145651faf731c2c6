"""Where recipes are: files of the user's, and those that come with the package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from layerroute.errors import UserError, nearest
from layerroute.recipe import yaml_reader

SUFFIX = ".yaml"


def shipped_folder() -> Path:
    """Return the folder of the recipes that come with layerroute.

    In a checkout that is ``recipes/`` at its top; a wheel carries the same files inside the package.
    """
    package = Path(__file__).resolve().parents[1]
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parents[1] / "recipes"


def as_given(file: Path) -> str:
    """How a command names a recipe or study: a shipped one that was found by its name by that, others by their path."""
    folder = shipped_folder()
    return file.relative_to(folder).with_suffix("").as_posix() if file.is_relative_to(folder) else str(file)


def shipped_recipes() -> Iterator[str]:
    """Yield the names of all shipped recipes (``attention_routing/dynamic``), in order.

    Studies and lists of tasks are not among them.
    """
    return (name for name, kind in _shipped() if kind == "recipe")


def shipped_studies() -> Iterator[str]:
    """Yield the names of all shipped studies, in order."""
    return (name for name, kind in _shipped() if kind == "study")


def shipped_task_lists() -> Iterator[str]:
    """Yield the names of all shipped lists of tasks for evaluation, in order."""
    return (name for name, kind in _shipped() if kind == "tasks")


def kind_of_file(file: Path) -> Literal["recipe", "study", "tasks"]:
    """What a YAML file is, by what it names: ``arms``, ``tasks``, or else a recipe, also where it cannot be read."""
    try:
        tree = yaml_reader.read_mapping(file)
    except UserError:
        return "recipe"
    return "study" if "arms" in tree else "tasks" if "tasks" in tree else "recipe"


def _shipped() -> Iterator[tuple[str, Literal["recipe", "study", "tasks"]]]:
    folder = shipped_folder()
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        yield path.relative_to(folder).with_suffix("").as_posix(), kind_of_file(path)


def find_recipe(path: str | os.PathLike[str], *, shipped: bool = True) -> Path:
    """Return the file that is meant by ``path``.

    A path that exists comes first; ``.yaml`` may be left out. Otherwise ``path`` may name a shipped recipe
    (``attention_routing/dynamic``, also written ``recipes/attention_routing/dynamic.yaml``), unless ``shipped`` is
    False.

    Raises:
        UserError: there is none; the message gives the nearest one.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path of a recipe.")
    try:
        candidates = [Path(text), Path(f"{text}{SUFFIX}")]
        if shipped and not Path(text).is_absolute():
            name = text.removeprefix("recipes/")
            candidates += [shipped_folder() / name, shipped_folder() / f"{name}{SUFFIX}"]
        for candidate in candidates:
            # Whatever is there and no folder will be opened, and will say for itself if it cannot be read.
            if candidate.exists() and not candidate.is_dir():
                return candidate
    except OSError as error:
        raise UserError(f"cannot read the recipe {text:.200}: {error.strerror or error}.") from None
    raise UserError(_not_found(text, shipped))


def _not_found(text: str, shipped: bool) -> str:
    folder = Path(text)
    if folder.is_dir():
        names = sorted(entry.name for entry in folder.glob(f"*{SUFFIX}"))
        inside = f" Recipes in it: {', '.join(names)}." if names else " There are no recipes in it."
        return f"{text} is a folder; give a recipe, a {SUFFIX} file.{inside}"
    beside = [entry.name for entry in folder.parent.glob(f"*{SUFFIX}")] if folder.parent.is_dir() else []
    if beside:
        return f"there is no recipe {text}.{nearest(folder.name, beside)}"
    if not shipped:
        return f"there is no recipe {text}; paths are relative to the file that names them."
    names = [name for name, _ in _shipped()]
    alike = [name for name in names if name.rpartition("/")[2] == text]
    if len(alike) > 1:
        return f"there is no recipe {text}. Did you mean one of {', '.join(map(repr, alike))}?"
    return f"there is no recipe {text}.{nearest(text, alike or names)}"
