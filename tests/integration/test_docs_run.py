"""The pages' own blocks: every command is understood, and all of them run but those that `docs_runner` names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerroute.cli.main import COMMANDS, _parse, command_parser
from layerroute.errors import UserError
from layerroute.recipe import find_recipe, kind_of_file, load_recipe
from tests.docs_runner import NOT_RUN, PAGES, PAGES_NOT_RUN, ROOT, Runner, blocks, kind, lines, ours, reason
from tests.tiny_recipes import write_home


def shell(page: Path) -> list[str]:
    """All commands of a page."""
    return [
        line.command
        for block in blocks(page.read_text(encoding="utf-8"))
        if not block.language and not block.title
        for line in lines(block.code)
    ]


def of_layerroute(page: Path) -> list[list[str]]:
    """All commands of ours on a page, without those that the reader completes."""
    found = [ours(command) for command in shell(page)]
    return [words for words in found if words and not any("…" in word for word in words)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options, recipes and keys are there."""
    for words in of_layerroute(PAGES[page]):
        assert words[0] in COMMANDS, words
        monkeypatch.chdir(ROOT)
        module, parser = command_parser(words[0])
        arguments = _parse(parser, module, words[1:])
        if words[0] == "train" and kind_of_file(find_recipe(arguments.recipe)) == "recipe":
            load_recipe(arguments.recipe, arguments.overrides)


def test_what_is_not_understood_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nlayerroute calibrate a --budget 0.3 \\\n    --rnk 4   # no\nlayerroute doctor\n```\n"
    )
    first, second = of_layerroute(page)
    assert first == ["calibrate", "a", "--budget", "0.3", "--rnk", "4"] and second == ["doctor"]
    module, parser = command_parser("calibrate")
    with pytest.raises(UserError, match="--rnk"):
        _parse(parser, module, first[1:])


def test_make_has_the_targets() -> None:
    targets = set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    commands = [command.split() for page in PAGES.values() for command in shell(page)]
    named = {words[1] for words in commands if words[0] == "make"}
    assert named and named <= targets


# Running them.

RUN = [
    name
    for name, path in PAGES.items()
    if name not in {*PAGES_NOT_RUN, "LOG.md"} and any(blocks(path.read_text(encoding="utf-8")))
]


def test_what_is_not_run_is_there_and_has_its_reason() -> None:
    assert set(PAGES_NOT_RUN) <= {name for name, path in PAGES.items() if "```" in path.read_text("utf-8")}
    assert {reason(command) for name in RUN for command in shell(PAGES[name])} - {None} == NOT_RUN.keys()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("home"), num_hidden_layers=12)


@pytest.fixture
def runner(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Runner:
    monkeypatch.chdir(tmp_path)
    # Pages share what they calibrate for training: the same base, text and sizes.
    monkeypatch.setenv("LAYERROUTE_CACHE", str(home / "cache"))
    return Runner(home, monkeypatch, capsys)


# Pages that train take minutes: they run in the walk.
LONG = {"layer-skipping.md", "studies.md"}


def test_long_pages_are_there() -> None:
    assert set(RUN) >= LONG


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(it, marks=pytest.mark.walk if it in LONG else []) for it in RUN]
)
def test_blocks_run_and_print_what_they_show(page: str, runner: Runner) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    could = [command for command in shell(PAGES[page]) if not reason(command)]
    code = [block for block in blocks(text) if block.language == "python" and not block.title]
    assert runner.run(text) == len(could) + len(code)


RECIPE = "recipes/attention_routing/dynamic.yaml"


BROKEN = {
    "option": (f"```\nlayerroute validate {RECIPE} --nothing\n```\n", "--nothing"),
    "in a list": (f"1. Then:\n\n    ```\n    layerroute validate {RECIPE}s\n    ```\n", "dynamic.yamls"),
    "other command": ("```bash\necho layerroute\n```\n", "neither a command of layerroute nor in NOT_RUN"),
    "not made": (
        f"```\nlayerroute validate {RECIPE}    # → runs/nowhere/\n```\n",
        "does not make runs/nowhere/",
    ),
    "loop": ("```\nfor arm in none; do\nlayerroute validate attention_routing/$arm\ndone\n```\n", "none"),
    "no such run": ("```\nlayerroute evaluate runs/nothing --data notes.txt\n```\n", "runs/nothing"),
    "name in Python": ("```python\nimport layerroute\nlayerroute.laod('a')\n```\n", "laod"),
    "output": ("```python\nprint('3 of 4, 3 of four')  # → 2 of 7, 3 of 1\n```\n", "is not in"),
    "unnamed file": ("```yaml\na: 1\n```\n", "needs a title"),
    "open fence": ("```python\nprint(1)\n", "a fence that is not understood"),
}


@pytest.mark.parametrize(("page", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_page_fails(page: str, says: str, runner: Runner) -> None:
    with pytest.raises((AssertionError, AttributeError), match=re.escape(says)):
        runner.run(page)


def test_a_page_is_run_in_order_in_one_folder(runner: Runner) -> None:
    page = (
        '```yaml title="mine.yaml"\nbase: recipes/attention_routing/dynamic.yaml\n```\n'
        "```\nlayerroute validate mine.yaml; pip install nothing    # what it comes to\n```\n"
        "- In a list:\n\n  ```python\n  value = 3\n  ```\n\n```python\nprint(value, 'of 4')  # → 2 of 7\n```\n"
    )
    assert runner.run(page) == 3


def test_kinds_of_output() -> None:
    line = kind("26% of MLPs skipped, +0.219 nats; it beats all (1.5 …")
    assert re.search(line, "3% of MLPs skipped, -1.0 nats; it loses to all (2.5 of something")
    assert not re.search(line, "26% of layers skipped, +0.219 nats; it beats all (1.5")


def readme_faults(text: str) -> list[str]:
    """What makes a README hard to read: too many lines, lines too long outside code and tables, cells too long."""
    lines = text.splitlines()
    found = [f"{len(lines)} lines"] if len(lines) > 120 else []
    code = False
    for line in lines:
        if line.lstrip().startswith("```"):
            code = not code
        elif line.startswith("|"):
            found += [
                f"a cell of {len(cell.strip())}: {cell}"
                for cell in line.split("|")
                if len(cell.strip()) > 120
            ]
        elif not code and len(line) > 120:
            found.append(f"{len(line)} columns: {line}")
    return found


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_faults(text) == []
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 1 and len(tables[0].splitlines()) <= 2 + 8, "one table, of at most eight rows"
    assert "arXiv 2606.01838" in text, "LayerRoute is another project"


def test_a_long_readme_is_seen() -> None:
    assert readme_faults("a\n" * 121) == ["121 lines"]
    assert readme_faults("a" * 121) == [f"121 columns: {'a' * 121}"]
    assert readme_faults(f"```\n{'a' * 121}\n```\n") == []
    assert readme_faults(f"| {'a' * 121} | b |") == [f"a cell of 121:  {'a' * 121} "]
