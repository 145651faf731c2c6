"""The command line's frame: help without torch, one line for bad input, the promised exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from layerroute.cli import main as frame
from layerroute.cli.main import COMMANDS, main, take_overrides
from layerroute.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Register a command ``probe`` that does what the test says."""

    def register(run: Callable[[argparse.Namespace], int], **attributes: Any) -> types.ModuleType:
        module = types.ModuleType("layerroute.cli.probe")

        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("recipe", nargs="*")
            parser.add_argument("--seed", type=int)

        module.add_arguments = add_arguments  # type: ignore[attr-defined]
        module.run = run  # type: ignore[attr-defined]
        for name, value in attributes.items():
            setattr(module, name, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, "probe", (module.__name__, "probe the frame"))
        return module

    return register


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\nfrom layerroute.cli.main import main, COMMANDS\n"
        "try: main(['--help'])\nexcept SystemExit as end: print('code', end.code)\n"
        "print('imported', [m for m, _ in COMMANDS.values() if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "code 0\nimported []" in result.stdout
    for name, (_, line) in COMMANDS.items():
        assert name in result.stdout
        assert line.split()[0] in result.stdout


@pytest.mark.parametrize(
    "argv", [["-m", "layerroute"], ["-c", "from layerroute.cli.main import main; exit(main())"]]
)
def test_without_a_command_help_goes_to_stderr_with_code_2(argv: list[str]) -> None:
    result = subprocess.run([sys.executable, *argv], check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("usage: layerroute")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no command 'trian'. Did you mean 'train'?"),
        (["--versoin"], "'--versoin' is not understood. Did you mean '--version'?"),
        (["probe", "--sed", "3"], "'--sed' is not understood. Did you mean '--seed'?"),
        (
            ["probe", "--seed", "three"],
            "argument --seed: invalid int value: 'three'. See 'layerroute probe --help'.",
        ),
        (["probe", "--seed"], "argument --seed: expected one argument."),
        (["probe", "--train.max_steps", "29"], "'--train.max_steps' is not understood."),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    command: Callable[..., Any], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    command(lambda arguments: 0)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("layerroute: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_message_of_several_lines_is_told_in_one(
    command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise UserError("first\n  second")

    command(run)
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "layerroute: error: first second\n"


def test_the_commands_own_code_is_passed_on(command: Callable[..., Any]) -> None:
    command(lambda arguments: arguments.seed)
    assert main(["probe", "--seed", "1"]) == 1
    assert main(["probe", "--seed", "0"]) == 0


def test_interruption_is_130(command: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    command(run)
    assert main(["probe"]) == 130
    assert capsys.readouterr().err == "layerroute: interrupted\n"


def test_a_full_or_forbidden_disk_is_one_line_and_a_bug_is_not_hidden(
    command: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    failure: list[Exception] = [OSError(errno.ENOSPC, "No space left on device", "runs/x")]

    def run(arguments: argparse.Namespace) -> int:
        raise failure[0]

    command(run)
    assert main(["probe"]) == 2
    assert capsys.readouterr().err == "layerroute: error: No space left on device: runs/x\n"
    failure[0] = FileNotFoundError(errno.ENOENT, "gone", "x")
    with pytest.raises(FileNotFoundError):
        main(["probe"])
    failure[0] = ValueError("a bug of ours")
    with pytest.raises(ValueError, match="a bug of ours"):
        main(["probe"])


@pytest.mark.parametrize("argv", ["['--help']", "['probe']"])
def test_a_reader_that_leaves_early_is_no_traceback(argv: str) -> None:
    code = (
        "import sys, types, time\nfrom layerroute.cli import main as frame\n"
        "probe = types.ModuleType('probe'); probe.add_arguments = lambda parser: None\n"
        "def run(arguments):\n for i in range(100000): print('a line of text', i)\n return 0\n"
        "probe.run = run; sys.modules['probe'] = probe; frame.COMMANDS['probe'] = ('probe', 'probe')\n"
        "time.sleep(0.2)\n"
        f"sys.exit(frame.main({argv}))"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_overrides_reach_the_command_in_any_place(command: Callable[..., Any]) -> None:
    seen: list[argparse.Namespace] = []
    command(lambda arguments: seen.append(arguments) or 0, ACCEPTS_OVERRIDES=True)
    assert main(["probe", "--train.max_steps", "29", "r.yaml", "--seed", "3", "--data.paths=[a, b]"]) == 0
    assert seen[0].recipe == ["r.yaml"]
    assert seen[0].seed == 3
    assert seen[0].overrides == {"train.max_steps": "29", "data.paths": "[a, b]"}


def test_take_overrides_leaves_the_rest_alone() -> None:
    words = ["a", "--x.y=", "--z.lr", "-1", "--flag", "v1.2", "--", "--p.q", "1"]
    assert take_overrides(words) == (["a", "--flag", "v1.2", "--", "--p.q", "1"], {"x.y": "", "z.lr": "-1"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--a.b"], "--a.b needs a value"),
        (["--a.b", "--c.d", "1"], "--a.b needs a value"),
        (["--a.b=1", "--a.b", "2"], "--a.b is given twice"),
    ],
)
def test_take_overrides_refuses_what_is_unclear(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        take_overrides(words)


def test_the_frame_itself_is_the_installed_script() -> None:
    import importlib.metadata

    (script,) = importlib.metadata.entry_points(group="console_scripts", name="layerroute")
    assert script.load() is frame.main
