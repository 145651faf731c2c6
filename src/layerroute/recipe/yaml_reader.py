"""YAML as recipes use it: one document, one mapping, YAML 1.2 scalars, no key twice, no aliases.

PyYAML follows YAML 1.1, in which ``1e-3`` is a text, ``no`` is false, ``1:30`` is 90 and ``010`` is 8. Each of these
has spoilt somebody's learning rate; the loader here reads and writes the scalars of YAML 1.2's core schema instead.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from layerroute.errors import UserError

MAXIMUM_BYTES = 1 << 20
"""No recipe is longer; what is longer is some other file (a checkpoint, say) and is not read."""

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    # No others than those of the core schema: sets, dates and bytes are no values of recipes.
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map")
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not read in recipes; use 'base:'", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, yaml.Mark] = {}
        # What `!!map` calls a mapping need not be one: then the call below tells.
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key_node.value in seen:
                first = seen[key_node.value].line + 1
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key_node.value!r} is there twice, first in line {first}",
                    key_node.start_mark,
                )
            seen[key_node.value] = key_node.start_mark
        return super().construct_mapping(node, deep)

    def construct_plain(self, node: yaml.ScalarNode) -> Any:
        """A scalar that its form, or a tag (``!!bool maybe``), calls one of ``_SCALARS``."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if not re.fullmatch(_SCALARS[kind][0], text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r:.40} is no {kind}", node.start_mark)
        if kind == "int":
            return int(text, 16) if text.startswith("0x") else int(text)
        return yaml.SafeLoader.yaml_constructors[node.tag](self, node)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_constructor(f"{_TAG}{_tag}", _Loader.construct_plain)
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        UserError: the file cannot be read, is not text, not YAML, or not a mapping; the message names the file, and the
            line where there is one.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}.") from None
    if len(content) > MAXIMUM_BYTES:
        raise UserError(f"{path} is longer than any recipe (1 MiB); give a YAML file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a recipe: it is not UTF-8 text; give a YAML file.") from None
    tree = parse(text, str(path))
    if tree is None:
        raise UserError(f"{path} is empty; a recipe needs at least 'capability', or a 'base' that has it.")
    if not isinstance(tree, dict):
        kind = "a list" if isinstance(tree, list) else f"the value {tree!r:.40}"
        raise UserError(f"{path} is not a recipe: it holds {kind} where 'key: value' lines are due.")
    return tree


def parse(text: str, where: str) -> Any:
    """Parse one YAML document; ``where`` names it in messages.

    Raises:
        UserError: it is not YAML, or uses what recipes do not.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deeply.") from None
    except ValueError as error:
        # A number of thousands of digits.
        raise UserError(f"{where}: not valid YAML: {error}.") from None


def dump(tree: Any) -> str:
    """Return ``tree`` as YAML that :func:`parse` reads back to the same values."""
    # Escaped beyond ASCII: PyYAML writes some line breaks of Unicode (U+0085) as they are, and reads them as spaces.
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)
