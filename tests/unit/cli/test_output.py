"""What commands write: JSON alone on stdout, in any encoding; no word broken; output paths checked before the work."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerroute.cli import arguments, output
from layerroute.cli.main import COMMANDS, main
from layerroute.lab.report.terminal import print_table
from layerroute.lab.table import Column, Row, Table, text_cells

NOISY = """
import os, subprocess, sys, types
from layerroute.cli import main as frame, output
def run(arguments):
    print("a library prints")
    os.system("echo a process prints")
    os.write(1, b"C prints")
    output.print_json({"text": "\\u00fcber \\U0001f642 \\udc80", "loss": float("inf"), "rows": [float("nan"), 1.5]})
    print("and prints")
    return 0
probe = types.ModuleType("probe")
probe.add_arguments = lambda parser: parser.add_argument("--json", action="store_true")
probe.run = run
sys.modules["probe"] = probe
frame.COMMANDS["probe"] = ("probe", "probe")
sys.exit(frame.main(["probe", "--json"]))
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_stdout_is_json_alone_whoever_prints_in_any_encoding(encoding: str) -> None:
    surroundings = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr.decode()
    content = json.loads(done.stdout.decode(encoding))
    assert content == {"text": "über 🙂 \udc80", "loss": None, "rows": [None, 1.5]}
    for said in ("a library prints", "a process prints", "C prints", "and prints"):
        assert said in done.stderr.decode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_cannot_spell_is_no_traceback(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "layerroute", "evaluate", "über 🙂 [bold].jsonl"],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"[bold].jsonl" in done.stderr


def test_a_file_of_json_has_no_number_that_json_does_not_know(tmp_path: Path) -> None:
    output.write_json(tmp_path / "made" / "a.json", {"loss": float("nan"), "all": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "made" / "a.json").read_text()) == {"loss": None, "all": [None, 1.5]}


@pytest.mark.parametrize("stdout", ["/dev/full", None])
def test_a_stdout_that_takes_nothing_is_one_line(stdout: str | None) -> None:
    words = [sys.executable, "-m", "layerroute", "validate", "attention_routing/dynamic"]
    if stdout is None:  # closed, as by `>&-`
        code = "import os, sys; os.close(1); os.execv(sys.argv[1], sys.argv[1:])"
        done = subprocess.run([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return
    with Path(stdout).open("wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr == b"layerroute: error: No space left on device\n"


def test_what_is_no_terminal_has_no_broken_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    columns = [Column(label=f"A column of name {index}", numeric=True) for index in range(12)]
    rows = (Row(cells=text_cells(["an_arm_whose_name_is_long"] * 12)),)
    table = Table(name="T", title="[title] of it", columns=tuple(columns), rows=rows, notes=("a note " * 40,))
    print_table(table, output.make_console())
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "[title] of it" in shown, "no markup"
    for index in range(12):
        assert f"A column of name {index}" in shown
    assert ("a note " * 40).strip() in shown
    assert max(map(len, shown.split("\n"))) < 1000, "nothing is filled up with blanks"


def options(name: str) -> Iterator[argparse.Action]:
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    yield from parser._actions


WRITING = [
    (name, action.option_strings[0] if action.option_strings else str(action.metavar))
    for name in COMMANDS
    for action in options(name)
    if action.dest in ("out", "record", "figure")
]


def test_whatever_writes_says_so() -> None:
    """An option that names an output is of the types that look before the work."""
    assert len(WRITING) >= 9
    for name, option in WRITING:
        (action,) = [one for one in options(name) if option in (*one.option_strings, one.metavar)]
        checked = (output.folder, output.file, arguments.json_file, arguments.figure_file)
        assert action.type in checked, f"{name} {option}"


@pytest.mark.parametrize(("name", "option"), WRITING)
def test_output_paths_are_checked_before_the_work(
    name: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The input does not exist either: what is told first is what was looked at first."""
    (tmp_path / "file").write_text("")
    wrong = [
        tmp_path / "file" / "below.json",
        tmp_path / "file" / "deep" / "below.json",
        Path("/proc/none/x.json"),
    ]
    words = ["data", "show"] if name == "data" else [name, "nothing-here"]
    words += [option] if option.startswith("--") else ["--to", "hf"]
    for path in wrong:
        assert main([*words, str(path)]) == 2
        told = capsys.readouterr().err
        assert f"argument {option}: " in told
        assert str(path.parent) in told
        assert told.count("\n") == 1


def test_paths_that_can_be_written_are_not_made_yet(tmp_path: Path) -> None:
    deep = tmp_path / "a b" / "[c]"
    assert output.folder(str(deep)) == deep
    assert output.file(str(deep / "x.json")) == deep / "x.json"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(argparse.ArgumentTypeError, match="is a folder; name a file"):
        output.file(str(tmp_path))
