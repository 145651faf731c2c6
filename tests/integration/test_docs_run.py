"""The pages' own blocks: every command is understood, and those of the README and the first tutorials run.

A tiny model stands in for SmolLM2-135M, files that a page names are made, and sizes are small. Output that a page shows
(``# → …`` behind a ``print``) must come in the same kind: words as they are, other numbers.
"""

from __future__ import annotations

import glob
import json
import lzma
import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.cli.main import COMMANDS, _parse, command_parser, main
from layerroute.errors import UserError
from layerroute.recipe import find_recipe, kind_of_file, load_recipe
from tests.stand_in import TEXT, stand_in_for_smollm2, write_stand_in
from tests.tiny import RECIPE

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])}
RUN = ("README.md", "calibrate.md")
"""Pages whose blocks are executed; quickstarts are the README's."""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
        yield found[2], found[3]


def commands(block: str) -> list[list[str]]:
    """The command lines of a block of the shell, as words; several lines that end in a backslash are one."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    found = [shlex.split(part, comments=True) for line in lines for part in re.split(r";(?=\s)", line)]
    return [words for words in found if words]


def of_layerroute(page: Path) -> list[list[str]]:
    """All commands of ours on a page, without those that the reader or a loop completes."""
    found = [words for language, block in blocks(page.read_text(encoding="utf-8")) if not language
             for words in commands(block)]  # fmt: skip
    return [
        words[1:]
        for words in found
        if words[0] == "layerroute" and not any(set("$…") & set(word) for word in words)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands, options, recipes and keys are there."""
    for words in of_layerroute(PAGES[page]):
        assert words[0] in COMMANDS, words
        if "--help" in words:
            continue
        monkeypatch.chdir(ROOT)
        module, parser = command_parser(words[0])
        arguments = _parse(parser, module, words[1:])
        recipe = getattr(arguments, "recipe", None)
        if words[0] == "train" and recipe != "RECIPE" and kind_of_file(find_recipe(recipe)) == "recipe":
            load_recipe(recipe, arguments.overrides)


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
    named = {
        target
        for page in PAGES.values()
        for target in re.findall(r"^make ([\w-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert named and named <= targets


# Running them.

SIZES = {"length": 64, "rank": 4, "tokens-statistics": 512, "tokens-selection": 128, "tokens-search": 64}
CALIBRATION = [word for key, size in SIZES.items() for word in (f"--{key}", str(size))]
MORE = {
    "calibrate": [*CALIBRATION, "--tokens-heldout", "256", "--own-text", "0"],
    "transfer": [*CALIBRATION, "--tokens-heldout", "256", "--own-text", "0"],
    "generate": ["--max-new-tokens", "6"],
    "evaluate": ["--sequence-length", "64", "--sequences", "4"],
}


def documents(seed: str, count: int = 80) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(TEXT.split(), k=300)) + "." for _ in range(count)]


def make(name: str) -> None:
    """Write a file that a page names, or one that fits its pattern, or a folder of source files."""
    path = Path(name.replace("*", "0"))
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps({"text": text}) for text in documents(name))
    if path.name.endswith(".jsonl.xz"):
        path.write_bytes(lzma.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    else:
        path.mkdir()
        for number, text in enumerate(documents(name)):
            (path / f"module{number}.py").write_text(text)


def overrides(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Options of ``layerroute train`` for the keys of a recipe."""
    found: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"--{prefix}{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    return found


def train_options(recipe: str) -> list[str]:
    make("corpus.jsonl")
    train = RECIPE["train"] | {"max_steps": 4, "batch_size": 2}
    data = {"source": "files", "paths": ["corpus.jsonl"], "sequence_length": 32, "cache_dir": "cache"}
    if "attention_routing" in recipe:
        model = {"hidden_size": 32, "num_attention_heads": 2}
        return overrides({"train": train, "data": data | {"vocabulary_size": 300}, "model": model})
    sizes = {
        "tokens_statistics": 512,
        "tokens_selection": 128,
        "tokens_search": 64,
        "own_text": 0.0,
    }
    train |= {"threshold_tokens": 512, "route_sentences": 0}
    return overrides(
        {"train": train, "data": data, "start": sizes, "adapt": {"lora_rank": 2}, "skip": {"rank": 4}}
    )


def run(words: list[str]) -> None:
    """Run a command, as a shell would call it, at tiny sizes."""
    named = re.compile(r"(?:\w+(?::\d+)?=)?([\w/.*-]+\.jsonl(?:\.xz)?|src|tests)")
    for word in words[1:]:
        found = named.fullmatch(word)
        if found and not glob.glob(found[1]):
            make(found[1])
    # A word is a pattern to the shell unless it has a name before it, which layerroute resolves itself.
    words = [
        one
        for word in words
        for one in (sorted(glob.glob(word)) if "*" in word and "=" not in word else [word])
    ]
    more = train_options(words[1]) if words[0] == "train" else MORE.get(words[0], [])
    assert main([*words, *more]) == 0, words


def kind(shown: str) -> str:
    """A pattern of outputs of one kind: other numbers, and anything where it is cut short."""
    words = r".*" if shown.endswith("…") else ""
    parts = re.split(r"([+-]?\d[\d.,]*)", shown.removesuffix("…").rstrip())
    return (
        "".join(r"[+-]?\d[\d.,]*" if index % 2 else re.escape(part) for index, part in enumerate(parts))
        + words
    )


VERDICTS = ("beats", "loses to", "cannot be told from")


def shown_in(code: str) -> list[str]:
    """Patterns of what a block says that it prints, in order. What wins is of another kind on another model."""
    found = [kind(line.strip()) for line in re.findall(r"# → (.*)", code)]
    return [
        re.sub("|".join(map(re.escape, VERDICTS)), "(?:beats|loses to|cannot be told from)", one)
        for one in found
    ]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_blocks_run_and_print_what_they_show(
    page: str,
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in_for_smollm2(monkeypatch, stand_in)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    ran = 0
    for language, block in blocks(PAGES[page].read_text(encoding="utf-8")):
        if language == "python":
            capsys.readouterr()
            exec(compile(tiny(block), page, "exec"), {"__name__": "__main__"})
            out, place = capsys.readouterr().out, 0
            for pattern in shown_in(block):
                found = re.compile(pattern).search(out, place)
                assert found, f"{pattern}\nis not in\n{out[place:]}"
                place = found.end()
            ran += 1
        elif not language:
            for words in commands(block):
                if words[0] == "layerroute" and not any(set("$…") & set(word) for word in words):
                    run(words[1:])
                    ran += 1
    assert ran >= 5, "else nothing has been shown"


def tiny(code: str) -> str:
    """A block of Python at small sizes: the lines stay, and numbers of tokens shrink."""
    code = code.replace("budget=0.25)", "budget=0.25, tokens=512)")
    code = re.sub(r"\btokens=\d+", "tokens=512, length=64, rank=4, progress=False", code)
    return re.sub(r"\bmax_new_tokens=\d+", "max_new_tokens=6", code)


def test_another_kind_of_output_is_seen() -> None:
    (line,) = shown_in("print(x)  # → 26% of MLPs skipped, +0.219 nats; it beats all (1.5 …\n")
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
