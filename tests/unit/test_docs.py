"""The pages that people read: tables are tables, links lead somewhere, and the reference leaves nothing out."""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from layerroute.cli.bench import case_parser
from layerroute.cli.main import COMMANDS, command_parser, take_overrides
from layerroute.errors import UserError
from tests.docs_runner import blocks

ROOT = Path(__file__).parents[2]
GENERATED = {"api.md", "cli.md", "recipes.md", "records.md", "index.md", "changelog.md", "contributing.md"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def cells(line: str) -> int:
    return len(re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) - 2


def faults(text: str) -> list[str]:
    """Lines of tables that have no head, or are wider or narrower than it."""
    found = []
    for table, lines in itertools.groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not table:
            continue
        head, *rest = lines
        if not rest or not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rest[0]):
            found.append(f"no head: {head}")
            continue
        found += [
            f"{cells(row)} cells, not {cells(head)}: {row}" for row in rest if cells(row) != cells(head)
        ]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_have_heads_and_even_rows(page: Path) -> None:
    assert faults(page.read_text(encoding="utf-8")) == []


def test_a_headless_table_and_an_uneven_row_are_seen() -> None:
    assert faults("| a | b |\n|---|---|\n| `x|y` | 2 |\n") == []
    assert faults("| a | b |\n| 1 | 2 |\n") == ["no head: | a | b |"]
    assert faults("| a | b |\n|---|---|\n| 1 | 2 | 3 |\n") == ["3 cells, not 2: | 1 | 2 | 3 |"]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target, _, anchor in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(#([^)\s]+))?\)", text):
        if page.parent.name == "docs" and target in GENERATED:
            continue
        path = page.parent / target if target else page
        known = anchors(path.read_text(encoding="utf-8")) if path.suffix == ".md" and path.is_file() else ()
        if not path.exists() or (anchor and not anchor.startswith("layerroute.") and anchor not in known):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_every_page_has_its_place_in_the_manual() -> None:
    def named(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for inner in node.values() if isinstance(node, dict) else node:
                yield from named(inner)

    nav = set(named(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert nav == {page.name for page in (ROOT / "docs").glob("*.md")} | GENERATED


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    return {name: importlib.import_module(name) for name in ("docstrings", "generated")}


def test_the_reference_has_every_option(hooks: dict[str, ModuleType]) -> None:
    page = hooks["generated"].command_line()
    assert [command for command in COMMANDS if f"## {command}\n" not in page] == []
    options = {
        option
        for command in COMMANDS
        for action in command_parser(command)[1]._actions
        if action.help != argparse.SUPPRESS and action.dest != "help"
        for option in action.option_strings
    }
    assert len(options) > 50
    assert [option for option in options if not re.search(rf"`[^`]*{option}\b", page)] == []
    assert [line for line in page.splitlines() if line.endswith("|  |")] == []


def test_every_key_of_a_recipe_has_a_meaning(hooks: dict[str, ModuleType]) -> None:
    page = hooks["generated"].recipes()
    keys = [line for line in page.splitlines() if re.match(r"\| `[\w.]+\.\w+` \|", line)]
    assert len(keys) > 150
    assert [line for line in keys if line.endswith("|  |")] == []
    assert faults(page) == []


def test_a_public_name_without_docstring_is_seen(
    hooks: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    code = '"""A module."""\n\n__all__ = ["A", "said"]\n\ndef said():\n    """Say."""\n\nclass A:\n    """A."""\n\n'
    (tmp_path / "src" / "example.py").write_text(f"{code}    def silent(self): ...\n")
    monkeypatch.chdir(tmp_path)
    assert hooks["docstrings"].undocumented("example") == ["example.A.silent"]


def commands(text: str) -> list[str]:
    """The commands of layerroute in blocks of code, without what is only hinted at."""
    shell = [block.code for block in blocks(text) if block.language in ("", "text") and not block.title]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    found = [match[1] for line in lines if (match := re.search(r"(?:^|\s|/)(layerroute [a-z].*)", line))]
    return [line for line in found if not re.search(r"\.\.\.|…|^layerroute: |\[-h\]", line)]


def complaint(line: str) -> str | None:
    """What the parser says against a command; None where it is one."""
    name, *words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("&&")] if "&&" in words else words
    try:
        module, parser = command_parser(name)
        if getattr(module, "ACCEPTS_OVERRIDES", False):
            words, _ = take_overrides(words)
        arguments, unknown = parser.parse_known_args(words)
        if name == "bench" and arguments.case != "figure":
            from layerroute.benchmark.cases import load_case

            case_parser(load_case(arguments.case), arguments).parse_args(arguments.options)
    except (UserError, KeyError) as error:
        return f"{line}: {error}"
    recipes = [word for word in words if word.startswith("recipes/") and "$" not in word]
    missing = [word for word in recipes if not (ROOT / word).exists()]
    return f"{line}: {unknown or missing}" if unknown or missing else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_are_shown_are_commands(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [told for line in commands(page.read_text(encoding="utf-8")) if (told := complaint(line))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_names_that_are_imported_exist(page: Path) -> None:
    code = [block.code for block in blocks(page.read_text(encoding="utf-8")) if block.language == "python"]
    for node in (node for block in code for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layerroute"):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_a_command_that_is_none_is_seen() -> None:
    text = "```\nlayerroute evaluate CKPT --no-such 1\nlayerroute train recipes/none.yaml --train.max_steps 2\n```\n"
    told = [complaint(line) for line in commands(text)]
    assert [bool(one) for one in told] == [True, True]
    assert complaint("layerroute evaluate CKPT --json  # all of it") is None
