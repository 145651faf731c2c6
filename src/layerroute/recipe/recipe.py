"""Recipes: a YAML file over a base, a few overrides, and typed configuration out of it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layerroute.errors import UserError, nearest
from layerroute.recipe import conversion, yaml_reader
from layerroute.recipe.conversion import FromCommandLine, Misfit, show, unwrap
from layerroute.recipe.sections import CAPABILITIES, Section, import_class
from layerroute.recipe.shipped import find_recipe

if TYPE_CHECKING:
    from layerroute.data.configuration import DataConfig
    from layerroute.training.configuration import ObjectiveConfig, TrainConfig

DEFAULT_SEED = 42
MAXIMUM_SEED = 2**32 - 1
"""What NumPy's legacy seeding takes, which transformers' ``set_seed`` uses."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMAND_LINE = "command line"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        name: name of the arm; letters, digits, ``.``, ``_`` and ``-``. Default: the file's own name.
        capability: ``attention_routing``, or another key of :data:`layerroute.recipe.sections.CAPABILITIES`.
        seed: seeds weights, data order and noise.
        sections: the capability's sections by name, each an instance of its configuration class, or the checked
            keyword arguments of it (``model``).
    """

    name: str
    capability: str
    seed: int = DEFAULT_SEED
    sections: Mapping[str, Any]

    @property
    def model(self) -> dict[str, Any]:
        """Keyword arguments of the model's configuration class."""
        return self.sections["model"]

    @property
    def data(self) -> DataConfig:
        """What is read."""
        return self.sections["data"]

    @property
    def train(self) -> TrainConfig:
        """How it is trained."""
        return self.sections["train"]

    @property
    def objective(self) -> ObjectiveConfig:
        """What is optimised beside the cross-entropy."""
        return self.sections["objective"]


def load_recipe(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, its bases and the overrides, and hold all of it to the types.

    Args:
        path: a YAML file, or the name of a shipped recipe (``attention_routing/dynamic``).
        overrides: values by dotted key (``{"train.max_steps": 29}``), applied last. A text is parsed as YAML, as if
            it came from the command line (``"29"`` is 29); where text is due it is taken as it is.

    Raises:
        UserError: a file cannot be read, bases go in a circle, a key is unknown, a value is of a wrong type or out
            of range. The message names the file, the key, the value and what would be right.
    """
    file = find_recipe(path)
    layers = _read_with_bases(file)
    if "arms" in layers[-1][1]:
        raise UserError(f"{file} is a study of several arms: run it with `layerroute study`.")
    own = layers[-1][1]
    changed = _override_tree(overrides or {})
    layers.append((_COMMAND_LINE, changed))
    merged: dict[str, Any] = {}
    for _, tree in layers:
        merged = _merge(merged, tree)
    # A name tells this arm from its base's, so it is never inherited.
    named = layers[-1][1].get("name", own.get("name", file.stem))
    merged = {"name": named, **{key: value for key, value in merged.items() if key != "name"}}
    try:
        return _typed(merged)
    except Misfit as misfit:
        raise UserError(f"{_origin(misfit.path, layers)}: {'.'.join(misfit.path)} {misfit.reason}") from None
    except UserError as error:
        told = ((key, getattr(value, "text", value)) for key, value in _leaves(changed))
        changes = "".join(f" --{key} {value!s:.60}" for key, value in told)
        raise UserError(f"{file}{f' with{changes}' if changes else ''}: {error}") from error


def merge_overrides(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Lay overrides over one another, the last on top, as :func:`load_recipe` lays them over a recipe.

    A mapping adds to what lies below, also where one layer writes ``{"train": {"max_steps": 29}}`` and another one
    ``{"train.batch_size": 4}``; everything else replaces it.

    Raises:
        UserError: a key or a text does not parse.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, _override_tree(layer))
    return merged


def overridden_keys(overrides: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys that overrides give values to, those within mappings too.

    Raises:
        UserError: a key or a text does not parse.
    """
    return [key for key, _ in _leaves(_override_tree(overrides))]


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe, defaults included, as plain values that :func:`load_recipe` reads back alike."""
    sections = {
        name: value if isinstance(value, Mapping) else dataclasses.asdict(value)
        for name, value in recipe.sections.items()
    }
    top = {"name": recipe.name, "capability": recipe.capability, "seed": recipe.seed}
    return _to_plain({**top, **sections})


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as the text of a YAML file."""
    return yaml_reader.dump(recipe_to_dict(recipe))


def _typed(tree: dict[str, Any]) -> Recipe:
    known: Any = Literal[tuple(CAPABILITIES)]
    if unwrap(tree.get("capability")) is None:
        raise Misfit(("capability",), f"is missing; it must be {conversion.describe(known)}")
    capability = conversion.convert(tree["capability"], known, ("capability",))
    table = CAPABILITIES[capability]
    valid = ["name", "capability", "seed", *table]
    for key in tree:
        if key not in valid:
            raise Misfit((key,), f"is not a key of {capability} recipes.{nearest(key, ['base', *valid])}")

    name = tree["name"]
    name = name.text if isinstance(name, FromCommandLine) else name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Misfit(("name",), f"is {show(name)}; it must be made of letters, digits, '.', '_' and '-'")
    seed = unwrap(tree.get("seed", DEFAULT_SEED))
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAXIMUM_SEED:
        raise Misfit(("seed",), f"is {show(seed)}; it must be an integer from 0 to {MAXIMUM_SEED}")

    sections = {key: _section(section, tree.get(key, {}), key) for key, section in table.items()}
    return Recipe(name=name, capability=capability, seed=seed, sections=sections)


def _section(section: Section, tree: Any, key: str) -> Any:
    for name, path in section.nested.items():
        if isinstance(tree, Mapping) and isinstance(tree.get(name), Mapping):
            cls = import_class(path)
            tree = {**tree, name: conversion.arguments_of(cls, tree[name], (key, name))}
            conversion.construct(cls, tree[name], (key, name))
    cls = import_class(section.configuration)
    arguments = conversion.arguments_of(
        cls, tree, (key,), fields=conversion.fields_of(cls, below=import_class(section.below))
    )
    plain = _to_plain(arguments)  # before a class may change what it is given
    built = conversion.construct(cls, arguments, (key,))
    return built if section.build else plain


def _read_with_bases(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the recipe's files and what they say, the outermost base first, ``file`` last."""
    layers: list[tuple[str, dict[str, Any]]] = []
    seen: list[Path] = []
    while True:
        resolved = file.resolve()
        if resolved in seen:
            circle = " -> ".join(path.name for path in [*seen[seen.index(resolved) :], resolved])
            raise UserError(
                f"{layers[0][0]}: bases go in a circle ({circle}); one of them must have no 'base'."
            )
        seen.append(resolved)
        tree = yaml_reader.read_mapping(file)
        base = tree.pop("base", None)
        layers.insert(0, (str(file), tree))
        if base is None:
            return layers
        if not isinstance(base, str) or not base:
            raise UserError(
                f"{file}: base is {show(base)}; it must be the path of a recipe, relative to this file."
            )
        try:
            file = find_recipe(_beside(file, base), shipped=False)
        except UserError as error:
            raise UserError(f"{file}: base: {error}") from None


def _beside(file: Path, base: str) -> Path:
    path = file.parent / base
    # `recipes/a/b.yaml` with base `../c.yaml` reads better as `recipes/c.yaml`; a link must not be cut short.
    plain = Path(os.path.normpath(path))
    return plain if "\0" not in base and plain.exists() and plain.samefile(path) else path


def _override_tree(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for dotted, value in overrides.items():
        keys = dotted.split(".")
        if not all(keys):
            raise UserError(f"override {dotted!r}: write section.key, such as train.max_steps.")
        branch = value
        if isinstance(value, str):
            branch = yaml_reader.parse(value, f"override {dotted}")
            if not isinstance(branch, str | dict | list):
                branch = FromCommandLine(value, branch)
        for key in reversed(keys):
            branch = {key: branch}
        tree = _merge(tree, branch)
    return tree


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{key}.{below}", leaf) for below, leaf in _leaves(value))
        else:
            yield key, value


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``under`` with ``over`` on top: mappings are merged, everything else is replaced."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            _merge(below if isinstance(below, dict) else {}, value) if isinstance(value, Mapping) else value
        )
    return merged


def _origin(path: tuple[str, ...], layers: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the file (or the command line) that has the last word on a key, or else the recipe's own file."""
    for where, tree in reversed(layers):
        found: Any = tree
        for key in (step.partition("[")[0] for step in path):
            if not isinstance(found, Mapping) or key not in found:
                break
            found = found[key]
        else:
            return where
    return layers[-2][0]


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value
