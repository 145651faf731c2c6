"""Pages that nobody writes: options from the parsers, recipe keys from their classes, the schema of records."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from docstrings import PACKAGES, markdown
from griffe import Docstring, DocstringSectionKind
from mkdocs.structure.files import File, Files

from layerroute import EXPORTS
from layerroute.cli.main import COMMANDS, command_parser
from layerroute.recipe.conversion import describe, fields_of, required_of, show
from layerroute.recipe.sections import CAPABILITIES, import_class
from layerroute.records import RecordSchema


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to those in ``docs/``."""
    pages = {"api.md": python, "cli.md": command_line, "recipes.md": recipes, "records.md": records}
    for name, make in pages.items():
        files.append(File.generated(config, name, content=make()))
    return files


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


# --- Python


def python() -> str:
    """The names of the top level one by one, then the packages below it."""
    parts = ["# Python", "These names are public. Others may change without notice.", "## layerroute"]
    parts += [f"::: layerroute.{name}" for name in EXPORTS]
    for package in PACKAGES:
        parts += [
            f"## {package}",
            f"::: {package}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}",
        ]
    return "\n\n".join(parts) + "\n"


# --- the command line


def command_line() -> str:
    """Every command, its arguments and its examples."""
    parts = [
        "# Command line",
        "`layerroute COMMAND --help` prints the same in a terminal. This page is made from the parsers.",
        table(("command", "what it does"), ((f"[`{n}`](#{n})", line) for n, (_, line) in COMMANDS.items())),
        'Exit codes: 0 done; 1 a command\'s own "no"; 2 bad input; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.',
    ]
    for name in COMMANDS:
        _, parser = command_parser(name)
        parts += [f"## {name}", *parser_parts(parser, "###")]
        if name == "bench":
            parts += bench_cases()
    return "\n\n".join(parts) + "\n"


def parser_parts(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    """Description, usage, options, examples, and the same of each subcommand."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if parser.description:
        yield fenced(parser.description) if "\n  " in parser.description else parser.description
    yield fenced(re.sub(r"\n +", "\n    ", parser.format_usage().removeprefix("usage: ")))
    rows = [
        option_row(parser, action)
        for action in parser._actions
        if action.help != argparse.SUPPRESS and action not in nested and action.dest != "help"
    ]
    if rows:
        yield table(("argument", "meaning"), rows)
    if parser.epilog:
        yield fenced(parser.epilog) if "\n  " in parser.epilog else parser.epilog
    for action in nested:
        for name, subparser in action.choices.items():
            yield f"{heading} {parser.prog.split()[-1]} {name}"
            yield from parser_parts(subparser, f"{heading}#")


def bench_cases() -> Iterator[str]:
    """The cases of ``layerroute bench``, each of which has options of its own."""
    from layerroute.benchmark.cases import CASES, load_case
    from layerroute.cli.bench import case_parser

    for name in CASES:
        yield f"### bench {name}"
        arguments = argparse.Namespace(case=name, parser_class=argparse.ArgumentParser)
        yield from parser_parts(case_parser(load_case(name), arguments), "####")


def fenced(text: str) -> str:
    """Text as it stands."""
    return f"```text\n{text.strip()}\n```"


def option_row(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    """One argument: its names and value, and its help with the default filled in."""
    formatter = parser._get_formatter()
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    names = ", ".join(action.option_strings) or formatter._metavar_formatter(action, action.dest)(1)[0]
    shown = f"{names} {value}".strip() if action.option_strings else names
    return f"`{shown}`", formatter._expand_help(action) if action.help else ""


# --- recipes


def recipes() -> str:
    """Every section of a recipe and every key of it."""
    parts = [
        "# Recipe keys",
        "A recipe is a YAML file: `base`, `capability`, `name`, `seed`, and the sections below. Every key can also "
        "be set on the command line: `--train.max_steps 29`. This page is made from the configuration classes. "
        "`layerroute validate RECIPE` shows what a recipe comes to.",
        table(
            ("key at the top", "type", "meaning"),
            (
                ("`base`", "text", "another recipe, relative to this file; this one changes what it names"),
                (
                    "`capability`",
                    " or ".join(f"`{name}`" for name in CAPABILITIES),
                    "the question that it answers",
                ),
                ("`name`", "text", "name of the arm; default: the name of the file"),
                ("`seed`", "an integer", "seeds weights, data order and noise; default: 42"),
            ),
        ),
    ]
    seen: dict[type, str] = {}
    for capability, sections in CAPABILITIES.items():
        parts.append(f"## {capability}")
        for name, section in sections.items():
            cls = import_class(section.configuration)
            parts.append(f"### {capability}: {name}")
            if cls in seen:
                parts.append(f"The same keys as [`{seen[cls]}`](#{anchor(seen[cls])}).")
                continue
            seen[cls] = f"{capability}: {name}"
            nested = {key: import_class(path) for key, path in section.nested.items()}
            parts += class_parts(cls, name, import_class(section.below), nested)
    from layerroute.studies.configuration import StudyConfig

    parts += ["## Studies", *class_parts(StudyConfig, "", object, {})]
    return "\n\n".join(parts) + "\n"


def anchor(heading: str) -> str:
    """The fragment that Markdown gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def class_parts(cls: type, path: str, below: type, nested: dict[str, type]) -> Iterator[str]:
    """A class as a table of its keys, then the classes of its keys."""
    summary, meanings = documented(cls)
    yield summary
    fields, required, defaults = fields_of(cls, below=below), required_of(cls), defaults_of(cls)
    rows, inner = [], dict(nested)
    for key, hint in fields.items():
        inner |= {key: found} if (found := dataclass_in(hint)) else {}
        default = "required" if key in required else f"`{show(defaults[key])}`" if key in defaults else ""
        kind = "a mapping, see below" if key in inner else describe(hint)
        rows.append((f"`{path}.{key}`" if path else f"`{key}`", kind, default, meanings.get(key, "")))
    yield table(("key", "type", "default", "meaning"), rows)
    for key, other in inner.items():
        yield f"**`{path}.{key}`**" if path else f"**`{key}`**"
        yield from class_parts(other, f"{path}.{key}" if path else key, object, {})


def dataclass_in(hint: Any) -> type | None:
    """The configuration class in a type hint, if there is one."""
    if dataclasses.is_dataclass(hint):
        return typing.cast("type", hint)
    return next(filter(None, map(dataclass_in, typing.get_args(hint))), None)


def defaults_of(cls: type) -> dict[str, Any]:
    """Defaults that a recipe could write: plain values, not objects."""
    plain = (bool, int, float, str, list, dict, tuple, type(None))
    found = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    if dataclasses.is_dataclass(cls):
        made = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        found |= {name: make() for name, make in made.items() if make is not dataclasses.MISSING}
    return {name: value for name, value in found.items() if isinstance(value, plain)}


def documented(cls: type) -> tuple[str, dict[str, str]]:
    """The summary of a class, and what its docstring says of each key."""
    summary, meanings = [], {}
    for section in Docstring(markdown(inspect.getdoc(cls) or "")).parse("google"):
        if section.kind is DocstringSectionKind.text:
            summary.append(section.value)
        elif section.kind in (DocstringSectionKind.attributes, DocstringSectionKind.parameters):
            meanings |= {entry.name: " ".join(entry.description.split()) for entry in section.value}
    return "\n\n".join(summary), meanings


# --- records


def records() -> str:
    """The schema of the result record."""
    parts = [
        "# Records",
        "One run writes one JSON file, `record.json`. Reports are built from records alone. This page is made from "
        "the schema that every record is checked against. A score that was not reached is absent or null, never 0. "
        "Keys beyond the schema are kept. The last key, `checksum`, seals the file "
        "([what survives a crash](robustness.md)).",
        *schema_parts(RecordSchema, "record"),
    ]
    return "\n\n".join(parts) + "\n"


def schema_parts(schema: Any, title: str) -> Iterator[str]:
    """A typed mapping as a table, then the mappings inside."""
    yield f"## {title}"
    yield markdown(inspect.getdoc(schema) or "")
    hints = typing.get_type_hints(schema)
    inner = {key: found for key, hint in hints.items() if (found := schema_in(hint))}
    yield table(
        ("key", "type", "always there"),
        (
            (
                f"[`{key}`](#{key})" if key in inner else f"`{key}`",
                "a mapping" if key in inner else describe(hint),
                "yes" if key in schema.__required_keys__ else "",
            )
            for key, hint in hints.items()
        ),
    )
    for key, found in inner.items():
        yield from schema_parts(found, key)


def schema_in(hint: Any) -> Any:
    """The typed mapping in a type hint, if there is one."""
    if typing.is_typeddict(hint):
        return hint
    return next(filter(None, map(schema_in, typing.get_args(hint))), None)
