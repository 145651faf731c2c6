"""Runs the blocks of a page of the manual as a reader does: in order, in one folder, the page's own files at hand.

A tiny model stands in for SmolLM2-135M, and text for each file of text that is named and not there: those are the
reader's. Sizes are small. All else a page must make itself, by what stands further up on it.
"""

from __future__ import annotations

import functools
import glob
import json
import lzma
import random
import re
import shlex
import socket
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import layerroute
from layerroute.cli.main import main
from layerroute.recipe import find_recipe, kind_of_file, load_recipe
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from tests.tiny_recipes import small, small_in_all, words

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])}

NUMBERS_OF_THE_PROJECT = "the commands behind committed records: hours each; `make walk` runs their studies"
PAGES_NOT_RUN = {
    "recall.md": NUMBERS_OF_THE_PROJECT,
    "reproduction.md": NUMBERS_OF_THE_PROJECT,
    "results-recall.md": NUMBERS_OF_THE_PROJECT,
    "results-skipping.md": NUMBERS_OF_THE_PROJECT,
}
"""Pages with blocks that are not run, and why. Their commands are parsed all the same."""

NOT_RUN = {
    r"^pip install ": "tests install nothing",
    r"^make (demo|test)$": "`.ci/run` runs it",
    r"--start\.folder routers/35": "the folder is another page's; test_train_skipping.py goes on from one",
    r"^make install && ": "installs packages, as every test run has done",
    r"^make (demo-skip|install-vllm)\b": "installs packages; the commands behind it are run on other pages",
    r"^scripts/gpu/": "tests/integration/test_gpu_scripts.py rehearses them",
    r"^sbatch |^srun |^code=|^\[ \$code |^exit \$code": "tests/integration/test_examples.py gives Slurm's commands",
    r"--storage postgresql:": "needs a database server",
    r"--engine vllm": "needs vLLM, which has an environment of its own",
    r"^layerroute bench (?!decode --out )": "measures; tests/unit/benchmark runs every case, tiny",
    r"flash_attention_2": "needs a GPU and flash-attention",
    r"qwen2\.5_3b\.yaml": "4 bits: tests/integration/test_four_bits.py trains so",
    r"--compile\b": "torch's compiler takes minutes; tests/integration/test_compiled.py has it",
    r"--tasks (arc_challenge|evaluation/original)": "tasks of the hub need a network",
    r"^layerroute: error: this needs ": "what a command prints; tests/integration/test_extras.py has it",
}
"""Lines of the shell that are not run, and why."""

LAUNCHERS = {
    r"^torchrun .* -m layerroute ": "layerroute ",
    r"^ENGINE=fsdp examples/node8\.sh ": "layerroute train ",
    r"^\.venv-vllm/bin/layerroute ": "layerroute ",
}
"""What starts a command of ours elsewhere or many times. Here it is run once; test_distributed.py has the launchers."""

CALIBRATION = "--length 64 --rank 4 --tokens-statistics 512 --tokens-selection 128 --tokens-search 64"
SIZES = {
    "bench decode": "--repeats 3 --threads 1 --shape tiny --skip 0.5 --sizes 1x24",
    "calibrate": f"{CALIBRATION} --tokens-heldout 256 --own-text 0",
    "transfer": f"{CALIBRATION} --tokens-heldout 256 --own-text 0",
    "generate": "--max-new-tokens 6",
    "retention": "--sequence-length 64 --windows 4",
    "evaluate": "--sequence-length 64 --sequences 4",
}
"""What is laid over a command, so that it takes a second."""
IN_PYTHON: dict[str, dict[str, Any]] = {
    "calibrate": {"tokens": 512, "length": 64, "rank": 4, "own_text": 0, "progress": False},
    "generate": {"max_new_tokens": 6},
}
"""The same for functions of layerroute."""

IN_FILES = {r"max_steps: \d+": "max_steps: 2", r"most: [\d.]+": "most: 99"}
"""The same in files of a page; a gate that asks for a low loss stays open, as two steps teach nothing."""

TEXT = "the router reads a state of a token and decides which layers run, def return import class self None"
OF_TEXT = re.compile(r"[\w/.*-]*[\w*]\.(?:jsonl\.xz|jsonl|txt)\b|(?<![\w/.-])(?:src|tests)(?![\w/.-])")
OUTPUT = re.compile(r"(?:--out|--record|--figure|--archive) \S+")


class Block(NamedTuple):
    """A fenced block: its language (empty: the shell), the file that it is (``title="…"``), and its lines."""

    language: str
    title: str
    code: str


def blocks(text: str) -> Iterator[Block]:
    """All fenced blocks, those in lists too."""
    found = list(
        re.finditer(r'^( *)```(\w*)(?: title="([^"\n]+)")?\n(.*?)^\1``` *$', text, re.MULTILINE | re.DOTALL)
    )
    assert 2 * len(found) == len(re.findall(r"^ *```", text, re.MULTILINE)), "a fence that is not understood"
    for one in found:
        yield Block(one[2].replace("bash", ""), one[3] or "", textwrap.dedent(one[4]))


def small_file(code: str) -> str:
    """A file of a page with what `IN_FILES` has in it."""
    for asked, instead in IN_FILES.items():
        code = re.sub(asked, instead, code)
    return code


class Line(NamedTuple):
    """A command of the shell, and what its comment says that it gives (``# → …``)."""

    command: str
    shown: str


def lines(code: str) -> Iterator[Line]:
    """The commands of a block: ends in a backslash are joined, loops unrolled."""

    def unrolled(loop: re.Match[str]) -> str:
        return "".join(loop[3].replace(f"${loop[1]}", word) for word in loop[2].split())

    code = re.sub(r"\\\n\s*", " ", code)
    code = re.sub(r"^for (\w+) in (.*); do\n(.*?)^done$", unrolled, code, flags=re.MULTILINE | re.DOTALL)
    for line in code.splitlines():
        before, _, comment = re.sub(r"^#", " #", line).partition(" #")
        *first, last = re.split(r"; +", before)
        yield from (Line(command.strip(), "") for command in first)
        if last.strip():
            yield Line(last.strip(), comment.partition("→")[2].strip())


def reason(command: str) -> str | None:
    """The entry of `NOT_RUN` that keeps a command from being run."""
    return next((pattern for pattern in NOT_RUN if re.search(pattern, command)), None)


def ours(command: str) -> list[str]:
    """The words of a command of layerroute, without what launches it; none if it is another one."""
    for launcher, instead in LAUNCHERS.items():
        command = re.sub(launcher, instead, command)
    first, *rest = shlex.split(command)
    return rest if first == "layerroute" else []


# What a reader has.


def write_text(name: str) -> None:
    """A file, one that fits a pattern, or a folder of source files, with text of a few kinds of words."""
    path, draw = Path(name.replace("*", "0")), random.Random(name)
    texts = [" ".join(draw.choices(TEXT.split(), k=300)) + "." for _ in range(80)]
    path.parent.mkdir(parents=True, exist_ok=True)
    records = "\n".join(json.dumps({"text": text}) for text in texts)
    if path.name.endswith(".jsonl.xz"):
        path.write_bytes(lzma.compress(records.encode()))
    elif path.suffix:
        path.write_text(records if path.suffix == ".jsonl" else texts[0])
    else:
        path.mkdir()
        for number, text in enumerate(texts):
            (path / f"module{number}.py").write_text(text)


def sizes_of(command: list[str], home: Path) -> list[str]:
    """The words that make a command small."""
    own = {word.removeprefix("--").partition("=")[0] for word in command}
    if command[0] in ("train", "study"):
        file = find_recipe(command[1])
        if kind_of_file(file) == "recipe":
            changes = small(home, load_recipe(file))
        else:
            changes = small_in_all(home, Plan(load_study(file)))
        one = ["--workers", "1"] if "workers" in own else []  # each is a process that imports torch
        return [*words({key: value for key, value in changes.items() if key not in own}), *one]
    sizes = SIZES.get(" ".join(command[:2]), SIZES.get(command[0], "")).split()
    if command[0] == "transfer" and not command[1].startswith("smollm2"):
        sizes = ["--length", "64", "--tokens-heldout", "256"]  # a router is judged as it is
    if command[0] == "evaluate" and "--tasks" in command:
        sizes = []
    if command[0] == "calibrate" and "data" not in own:
        sizes += ["--data", str(home / "train.jsonl")]  # Python's whole library takes seconds to read
    if "tasks" in own:
        sizes += ["--limit", "2"]
    return sizes


# What is shown, in kind.

VERDICT = "(?:beats|loses to|cannot be told from)"


def kind(shown: str) -> str:
    """A pattern of outputs of one kind: other numbers, another winner, and anything where it is cut short."""
    parts = re.split(rf"([+-]?\d[\d.,]*|{VERDICT})", shown.removesuffix("…").rstrip())
    kinds = [VERDICT if re.fullmatch(VERDICT, part) else r"[+-]?\d[\d.,]*" for part in parts[1::2]]
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = kinds
    return "".join(parts) + (".*" if shown.endswith("…") else "")


def shown_in(code: str) -> list[str]:
    """Patterns of what a block of Python says that it prints, in order."""
    return [kind(line.strip()) for line in re.findall(r"# → (.*)", code)]


def assert_shown(patterns: list[str], out: str) -> None:
    """Every pattern is in the output, one after the other."""
    for pattern in patterns:
        found = re.search(pattern, out)
        assert found, f"{pattern}\nis not in\n{out}"
        out = out[found.end() :]


class Runner:
    """Runs pages.

    Args:
        home: a folder of `write_home`, whose model stands in.
        monkeypatch: until when the stand-ins stand.
        capsys: what is printed.
    """

    def __init__(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.home, self.monkeypatch, self.capsys = home, monkeypatch, capsys
        self.server: Server | None = None
        monkeypatch.setattr("layerroute.skipping.pretrained._smollm2", lambda: str(home / "model"))
        for name, settings in IN_PYTHON.items():
            monkeypatch.setattr(
                layerroute, name, self._sized(getattr(layerroute, name), settings), raising=False
            )

    @staticmethod
    def _sized(function: Any, settings: dict[str, Any]) -> Any:
        @functools.wraps(function)
        def sized(*arguments: Any, **keywords: Any) -> Any:
            return function(*arguments, **keywords | settings)

        return sized

    def run(self, text: str) -> int:
        """Run a page in the folder where we are; returns how many commands and blocks of Python ran."""
        for folder in ("recipes", "results"):
            Path(folder).symlink_to(ROOT / folder)
        names: dict[str, Any] = {"__name__": "__main__"}
        ran = 0
        try:
            for block in blocks(text):
                if block.title:
                    Path(block.title).write_text(small_file(block.code))
                elif block.language == "python":
                    self.python(block.code, names)
                    ran += 1
                else:
                    assert not block.language, (
                        f"a block of {block.language} needs a title: the file that it is"
                    )
                    ran += sum(self.shell(line) for line in lines(block.code))
        finally:
            self.stop_server()
        return ran

    def python(self, code: str, names: dict[str, Any]) -> None:
        """Run a block of Python, and compare what it prints with what it shows."""
        self.write_what_is_named(code)
        if self.server:
            code = code.replace("localhost:8000", f"localhost:{self.server.port}")
        self.capsys.readouterr()
        exec(compile(code, "the page", "exec"), names)
        assert_shown(shown_in(code), self.capsys.readouterr().out)

    def shell(self, line: Line) -> bool:
        """Run a command, as a shell would call it; False if `NOT_RUN` has it."""
        if reason(line.command):
            return False
        command = ours(line.command)
        assert command, f"{line.command}: neither a command of layerroute nor in NOT_RUN"
        self.write_what_is_named(line.command)
        # A word is a pattern to the shell unless it has a name before it, which layerroute resolves itself.
        command = [
            one
            for word in command
            for one in (sorted(glob.glob(word)) if "*" in word and not set("=[") & set(word) else [word])
        ]
        command += sizes_of(command, self.home)
        if command[0] == "serve":
            self.stop_server()
            self.server = Server(command, self.monkeypatch)
            return True
        self.capsys.readouterr()
        code, printed = main(command), self.capsys.readouterr()
        assert code == 0, f"{line.command}\n{printed.err}"
        assert not line.shown or Path(line.shown).exists(), f"{line.command} does not make {line.shown}"
        return True

    @staticmethod
    def write_what_is_named(code: str) -> None:
        for name in OF_TEXT.findall(OUTPUT.sub("", code)):
            if not glob.glob(name):
                write_text(name)

    def stop_server(self) -> None:
        if self.server:
            self.server.stop()
            self.server = None


class Server:
    """``layerroute serve`` on a free port, until the next one or the end of the page."""

    def __init__(self, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        import uvicorn

        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.port = free.getsockname()[1]
        self.made: list[uvicorn.Server] = []

        class Told(uvicorn.Server):
            def __init__(server, *arguments: Any) -> None:
                super().__init__(*arguments)
                self.made.append(server)

        monkeypatch.setattr(uvicorn, "Server", Told)
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, args=[[*command, "--port", str(self.port)]])
        self.thread.start()
        while self.thread.is_alive() and not (self.made and self.made[0].started):
            time.sleep(0.02)
        assert self.thread.is_alive(), f"{command} ended with {self.code}"

    def _run(self, command: list[str]) -> None:
        self.code = main(command)

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.made[0].should_exit = True
        self.thread.join(60)
        assert self.code == 130
