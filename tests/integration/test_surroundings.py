"""Commands × odd surroundings: no terminal, another encoding, paths with blanks and brackets, disks that take nothing.

A command joins by its entry in ``CALLS``; the first test says when one is missing.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from layerroute.cli.main import COMMANDS
from layerroute.skipping import SkipConfig, add_router, save_router
from tests.parity.skipping_models import sharpen
from tests.tiny import write_recipe
from tests.tiny_pretrained import write_documents, write_pretrained

ROOT = Path(__file__).parents[2]
SIZES = ["--length", "32", "--tokens-statistics", "768", "--tokens-selection", "256", "--rank", "4"]
LAYERS = ["--layers", "2-5", "--router-layer", "2", "--data", "train [1].jsonl"]
TEXT = ["--data", "heldout.jsonl", "--sequence-length", "32"]

# The folder, of which all paths are relative: a blank, what a glob or rich's markup would read, no ASCII.
ODD = "a b [bold] {x} über"

CALLS: dict[str, list[str]] = {
    "train": ["tiny.yaml", "--out", "run [é]"],
    "study": ["study.yaml", "--plan"],
    "validate": ["tiny.yaml", "--json"],
    "doctor": ["--json"],
    "data": ["prepare", "files", "--paths", "train [1].jsonl", "--vocabulary-size", "300", "--json"],
    "compare": ["run [é]", "--json"],
    "report": ["run [é]", "--out", "page [1]", "--json"],
    "calibrate": [
        "base",
        "--budget",
        "0.4",
        *SIZES,
        *LAYERS,
        "--tokens-heldout",
        "256",
        "--out",
        "made [2]",
        "--json",
    ],
    "headroom": ["base", *SIZES, *LAYERS, "--budgets", "0.25", "--json"],
    "transfer": [
        *("base", *SIZES, *LAYERS[:4], "--tokens-heldout", "256", "--budget", "0.5", "--json"),
        *("--out", "transfer [é]", "--data", "a=train [1].jsonl", "--data", "docs=python-docs"),
    ],
    "evaluate": ["router [1]", *TEXT, "--out", "scores [1]", "--json"],
    "retention": ["router [1]", *TEXT, "--out", "kept [1]", "--json"],
    "domains": [
        "router [1]",
        "a [b]=heldout.jsonl",
        "--sequence-length",
        "32",
        "--out",
        "rates [1]",
        "--json",
    ],
    "generate": ["router [1]", "the rößter 🙂", "--max-new-tokens", "4", "--json"],
    "inspect": ["router [1]", "--text", "the rößter [bold] 🙂", "--out", "routes [1]"],
    "bench": ["gated-delta", "--sizes", "2x40x2x8", "--repeats", "3", "--out", "bench [1].json", "--json"],
    "export": ["router [1]", "--to", "vllm", "exported [é]", "--json"],
    "serve": ["router [1]", "--port", "{taken}"],
}
CODES = {"serve": 2}  # a port that is taken: it would not come back
# Those that are done in a moment: again with a stdout that takes nothing.
QUICK = ("validate", "doctor", "study", "compare", "evaluate", "domains", "generate")
NOISE = ("not a git repository", "gemm_4bit", "FutureWarning", "Traceback")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def test_every_command_walks_here() -> None:
    assert set(CALLS) == set(COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and its router, text, a recipe and a study, all in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("walk") / ODD
    folder.mkdir()
    write_documents(folder, {"train [1]": 70, "heldout": 12}, length=90)
    write_pretrained(folder / "base", folder / "train [1].jsonl")
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    add_router(model, SkipConfig(layers=[2, 3, 4, 5], router_layer=2, rank=2))
    sharpen(model)
    save_router(model.eval(), folder / "router [1]")
    write_recipe(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump({"arms": ["tiny.yaml"], "seeds": [1]}))
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    """Everything, in one process, by ``COMMAND``, ``COMMAND on a full disk`` or ``COMMAND without a cache``."""
    calls: dict[str, dict[str, Any]] = {}
    logs = folder.parent / "logs"
    logs.mkdir()

    def add(title: str, words: list[str], stdout: str | None = None, **env: str) -> None:
        place = str(logs / str(len(calls)))
        calls[title] = {
            "words": words, "stdout": stdout or f"{place}.out", "stderr": f"{place}.err",
            "env": {"LAYERROUTE_CACHE": str(folder / "cache"), **env},
        }  # fmt: skip

    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, words in CALLS.items():
            add(name, [name, *(word.format(taken=port) if "{taken}" in word else word for word in words)])
        for name in QUICK:
            add(f"{name} on a full disk", [name, *CALLS[name]], stdout="/dev/full")
        nowhere = str(folder / "heldout.jsonl" / "below")
        add("data without a cache", ["data", *CALLS["data"]], LAYERROUTE_CACHE=nowhere)
        recipe = write_recipe(folder, name="uncached", data={"cache_dir": None})
        add("train without a cache", ["train", recipe.name, "--out", "never"], LAYERROUTE_CACHE=nowhere)
        list_file = logs / "calls.json"
        list_file.write_text(json.dumps(list(calls.values())))
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}
        subprocess.run(
            [sys.executable, "-m", "tests.integration.many_commands", str(list_file)],
            cwd=folder,
            env={**kept, "PYTHONIOENCODING": "ascii", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=1200,
        )
    codes = json.loads(Path(f"{list_file}.codes").read_text())
    return {
        title: Outcome(
            code,
            "" if one["stdout"] == "/dev/full" else Path(one["stdout"]).read_bytes().decode("ascii"),
            Path(one["stderr"]).read_bytes().decode("ascii"),
        )
        for (title, one), code in zip(calls.items(), codes, strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_command_does_its_work(name: str, outcomes: dict[str, Outcome], folder: Path) -> None:
    """In ASCII, into a pipe, in a folder with an odd name: its results whole, JSON alone on stdout."""
    done, words = outcomes[name], CALLS[name]
    assert done.code == CODES.get(name, 0), done.err
    for noise in NOISE:
        assert noise not in done.err
    if "--json" in words:
        json.loads(done.out)
    assert "\x1b" not in done.out
    if "--out" in words:
        assert (folder / words[words.index("--out") + 1]).exists()
    if done.code == 2:
        assert done.err.splitlines()[-1].startswith("layerroute: error: ")
    if name == "inspect":
        assert "wrote routes [1]/routes.html" in done.out


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_full_disk_is_one_line(name: str, outcomes: dict[str, Outcome]) -> None:
    done = outcomes[f"{name} on a full disk"]
    assert (done.code, done.err.splitlines()[-1:]) == (2, ["layerroute: error: No space left on device"]), (
        done.err
    )
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "train"])
def test_a_cache_that_cannot_be_written_is_one_line(
    name: str, outcomes: dict[str, Outcome], folder: Path
) -> None:
    done = outcomes[f"{name} without a cache"]
    assert done.code == 2, done.err
    assert "LAYERROUTE_CACHE" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not (folder / "never" / "record.json").exists()
