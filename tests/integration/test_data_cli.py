"""``layerroute data`` as users meet it: in processes of their own, at once, interrupted, on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerroute.cli.main import main

CODE = "import sys; from layerroute.cli.main import main; sys.exit(main())"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(40):
        lines = [f"line {line} of text {number}: {line * number} and {line + number}\n" for line in range(40)]
        (folder / f"{number:02}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(arguments: Sequence[object], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "data", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["data", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("layerroute: error: ")
    return captured.err


def test_prepare_then_show_then_list(corpus: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["files", "--paths", str(corpus), "--vocabulary-size", "300", "--sequence-length", "32"]
    assert main(["data", "prepare", *options, "--json"]) == 0
    captured = capsys.readouterr()
    prepared = json.loads(captured.out)
    assert captured.err == ""
    assert prepared["vocabulary_size"] == 300
    assert prepared["train_documents"] + prepared["validation_documents"] == 40
    assert prepared["train_windows"] == prepared["train_tokens"] // 32

    assert main(["data", "show", *options, "--window", "1", "--tokens", "5", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: shown[name] for name in prepared} == prepared
    assert len(shown["ids"]) == len(shown["pieces"]) == 5
    text = "".join(path.read_text() for path in sorted(corpus.iterdir()))
    assert "".join(shown["pieces"]) in text

    assert main(["data", "show", *options, "--of", "validation"]) == 0
    plain = capsys.readouterr().out
    assert prepared["fingerprint"] in plain
    assert f"{prepared['train_tokens']:,}" in plain

    assert main(["data", "show", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["fingerprint"] == prepared["fingerprint"]
    assert main(["data", "show"]) == 0
    assert capsys.readouterr().out.startswith(prepared["fingerprint"][:12])


@pytest.mark.slow
def test_a_recipes_data_section_is_a_source(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\ncapability: attention_routing\n"
        f"data: {{source: files, paths: ['{corpus}'], vocabulary_size: 310, sequence_length: 20}}\n"
    )
    assert main(["data", "prepare", str(recipe), "--vocabulary-size", "320", "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    assert (prepared["vocabulary_size"], prepared["sequence_length"]) == (320, 20)


def test_show_tells_what_is_not_there(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["files", "--paths", corpus, "--vocabulary-size", "300"]
    assert main(["data", "show"]) == 0
    assert capsys.readouterr().out.startswith("nothing is prepared in")
    assert main(["data", "prepare", *map(str, options)]) == 0
    capsys.readouterr()
    assert "windows of 256 tokens, counted from 0" in complaint(capsys, "show", *options, "--window", "99999")
    assert "counted from 0" in complaint(capsys, "show", *options, "--window", "-1")
    assert "must be 1 or more" in complaint(capsys, "show", *options, "--tokens", "0")


def test_neither_torch_nor_transformers_is_imported(corpus: Path) -> None:
    code = (
        "import sys; from layerroute.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas') if name in sys.modules])"
    )
    arguments = ["data", "prepare", "files", "--paths", str(corpus), "--vocabulary-size", "300"]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_progress_with_a_time_to_go_is_drawn_on_a_terminal(corpus: Path) -> None:
    arguments = ["prepare", "files", "--paths", corpus, "--vocabulary-size", "300"]
    drawn = on_terminal(arguments)
    assert all(part in drawn for part in ("reading", "training the", "tokenizing (train)", "00:0"))
    assert on_terminal(arguments) == "", "nothing is built, so nothing is drawn"
    assert on_terminal([*arguments, "--split-seed", "1", "--no-progress"]) == ""


def on_terminal(arguments: Sequence[object]) -> str:
    """Run with stderr on a pseudo-terminal and return what was drawn there."""
    outer, inner = os.openpty()
    command = [sys.executable, "-c", CODE, "data", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=inner, env=environment)
    os.close(inner)
    drawn = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while block := os.read(outer, 1 << 16):
            drawn += block
    os.close(outer)
    assert process.wait(60) == 0
    return drawn.decode()


def test_processes_that_prepare_the_same_data_at_once_agree(corpus: Path, cache: Path) -> None:
    arguments = ["prepare", "files", "--paths", corpus, "--vocabulary-size", "400", "--json"]
    running = [start(arguments) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 1
    folder = Path(json.loads(outputs[0][0])["folder"])
    assert {path.name for path in (cache / "tokens").iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(corpus: Path, cache: Path) -> None:
    """A limit on the size of files stands for the full disk: the write fails in the same place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start(
        ["prepare", "files", "--paths", corpus, "--vocabulary-size", "300"],
        preexec_fn=limit,
    )
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert stdout == ""
    assert "no space left for the token cache" in stderr
    assert stderr.count("\n") == 1
    assert [path.suffix for path in (cache / "tokens").iterdir()] == [".lock"]


def test_an_interrupt_leaves_nothing_and_the_next_run_is_whole(cache: Path) -> None:
    """Ctrl-C in the middle of the standard library, which takes seconds."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = start(
        ["prepare", "python-stdlib", "--max-characters", "6000000"],
        env=environment,
        # A shell lets what it starts in the background ignore Ctrl-C, and so what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(cache.glob("tokens/.*.saving")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1:] == ["layerroute: interrupted"], stderr
    assert [path.suffix for path in (cache / "tokens").iterdir()] == [".lock"]
