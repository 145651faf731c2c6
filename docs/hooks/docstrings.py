"""Docstrings as the manual shows them; a public name without one stops the build."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

from layerroute import EXPORTS

PACKAGES = [
    f"layerroute.{name}"
    for name in (
        "skipping",
        "skipping.calibration",
        "routing",
        "hybrid",
        "data",
        "recipe",
        "records",
        "exporting",
    )
]
"""What the API page shows below the top level."""
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
JOINT = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
"""One entry about several arguments (``budget, serve: for load_router``), which griffe knows no form for."""


class Markdown(griffe.Extension):
    """Roles of reStructuredText (``:class:`X```) become Markdown, and joint entries one entry for each argument."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """A docstring without roles and joint entries, and with its doctests as code."""
    text = ROLE.sub(r"`\1`", docstring).replace("``", "`")
    text = DOCTEST.sub(r"\1```pycon\n\g<0>\n\1```", text)
    return JOINT.sub(
        lambda found: "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")), text
    )


def on_config(config: Any) -> Any:
    """Look at every name that is given out at the top and by the packages of the API page."""
    missing = undocumented("layerroute", EXPORTS)
    missing += [name for package in PACKAGES for name in undocumented(package)]
    if missing:
        raise PluginError("no docstring: " + ", ".join(sorted(set(missing))))
    return config


def undocumented(module: str, names: Iterable[str] | None = None) -> list[str]:
    """Public constants, functions and classes, and the public methods of these, that say nothing."""
    package = griffe.load(module, search_paths=["src"], resolve_aliases=True)
    found = []
    for name in map(str, names or package.exports or ()):
        if name.startswith("_"):
            continue
        thing = package[name].final_target if package[name].is_alias else package[name]
        methods = [one for one in thing.members.values() if one.is_function] if thing.is_class else []
        own = [thing, *(one for one in methods if not one.name.startswith("_") and not overrides(one))]
        found += [one.canonical_path for one in own if not one.has_docstring]
    return found


def overrides(method: Any) -> bool:
    """Whether a base of the class has the method, with a docstring that holds for this one, too."""
    return any(method.name in base.members for base in method.parent.mro())
