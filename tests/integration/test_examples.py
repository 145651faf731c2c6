"""The examples run: those in Python with a tiny model, the shell for Slurm with stand-ins for Slurm's commands."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import layerroute
from layerroute.records import read_record, write_record
from tests.stand_in import stand_in_for_smollm2, write_stand_in

EXAMPLES = Path(__file__).parents[2] / "examples"
TOLD = "commands.txt"


def slurm(folder: Path, script: str, *arguments: str, code: int = 0, host: str = "") -> tuple[int, list[str]]:
    """Run a batch script as Slurm would; returns its exit code and the commands that it gave.

    Args:
        code: with which what srun starts ends.
        host: whose lock the run's folder holds, where it is not this one.
    """
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    lock = f'echo {host} > "$RUN/.lock"' if host else ":"
    for name, body in {
        "srun": f"{lock}\nexit {code}",
        "layerroute": f"exit {code}",
        "scontrol": "[ $1 = show ] && echo host-a && echo host-b || true",
        "python": f'exec {sys.executable} "$@"',
    }.items():
        told = "" if name == "python" else f'echo {name} "$@" >> {folder / TOLD}\n'
        (programs / name).write_text(f"#!/bin/bash\n{told}{body}\n")
        (programs / name).chmod(0o755)
    (folder / TOLD).write_text("")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "RUN": str(folder / "run"),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "host-[a-b]",
        "SLURM_NNODES": "2",
    }
    command = ["bash", str(EXAMPLES / "slurm" / script), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, (folder / TOLD).read_text().splitlines()


@pytest.mark.parametrize(
    ("status", "host", "requeued"),
    [
        ("completed", "", False),
        ("failed", "", False),
        ("interrupted", "", True),
        ("running", "", True),  # killed: the lock is free, so that it reads as interrupted
        ("running", "a-host-that-was-lost", True),
        (None, "", False),  # a recipe that cannot be read: it would come back forever
    ],
)
def test_a_run_goes_back_into_the_queue_if_it_can_go_on(
    finished_run: Path, tmp_path: Path, status: str | None, host: str, requeued: bool
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if status:
        write_record(run, {**read_record(finished_run), "status": status})
    code, told = slurm(tmp_path, "train.sbatch", "recipe.yaml", str(run), code=1, host=host)
    (started,) = [line for line in told if line.startswith("srun")]
    assert "--nnodes 2 --nproc-per-node 8" in started
    assert "--rdzv-endpoint host-a:29500" in started
    assert started.endswith(f"-m layerroute train recipe.yaml --out {run}")
    assert ("scontrol requeue 17" in told) == requeued
    assert (code == 0) == (status == "completed")


def test_a_worker_of_a_study_shares_folder_and_storage(tmp_path: Path) -> None:
    code, told = slurm(tmp_path, "study.sbatch", "study.yaml", "/shared/mine", "postgresql://a@b/c")
    assert code == 0
    assert told == ["layerroute study study.yaml --out /shared/mine --storage postgresql://a@b/c --workers 1"]


def test_the_page_shows_the_options_of_the_script() -> None:
    script = (EXAMPLES / "slurm" / "train.sbatch").read_text()
    for line in ("#SBATCH --requeue", "#SBATCH --signal=TERM@"):
        assert line in script
        assert line in (EXAMPLES.parent / "docs" / "robustness.md").read_text()


SMALL = {"tokens": 1024, "length": 64, "rank": 4, "own_text": 0.0}
TINY: dict[str, dict[str, Any]] = {
    "calibrate_and_save": SMALL,
    "compare_with_static": SMALL | {"data": "python-docs"},
    "hybrid_from_scratch": {"steps": 6, "length": 32, "hidden": 32},
    "peft_and_routing": SMALL | {"steps": 2},
    "routed_trainer": {"steps": 3, "length": 32},
    "routes_heatmap": {"text": "def read(path):"},
    "serve_and_ask": {"tokens": 4},
}
SAYS = {
    "calibrate_and_save": r"routed per token .*\n(.*\n)*\d+% of the MLPs skipped for [+-]\d\.\d{3} nats per token\n"
    r"(.*\n)*layers run by each token: \[\d+, ",
    "compare_with_static": r"static prune, by influence: saves .*%; routing at its cost is .* nats from it",
    "hybrid_from_scratch": r"step 5: \d\.\d{3} nats per byte\nsoftmax attention, by site: \{'layer1\.mixer': ",
    "peft_and_routing": r"step 1: \d\.\d{3} nats per token\n\d\.\d+\n",
    "routed_trainer": r"\d+% of the MLPs run\n",
    "routes_heatmap": r"'\)' +█+·* \d of 7\n",
    "serve_and_ask": r"import os\n.",
}
"""What each prints, in kind."""
MAKES = {
    "calibrate_and_save": "routers/mine/router.json",
    "compare_with_static": "static.png",
    "hybrid_from_scratch": "runs/hybrid/model.safetensors",
    "peft_and_routing": "routers/lora/adapter",
    "routed_trainer": "runs/trainer/whole/config.json",
    "routes_heatmap": "routes.png",
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_run_and_print_what_they_say(
    name: str,
    stand_in: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    stand_in_for_smollm2(monkeypatch, stand_in)
    monkeypatch.chdir(tmp_path)
    settings = TINY[name]
    if name in (
        "routes_heatmap",
        "serve_and_ask",
    ):  # they begin where another ended; a server is another process
        model, tokenizer = layerroute.load(stand_in)
        layerroute.calibrate(model, tokenizer, budget=0.35, progress=False, **SMALL).save("routers/mine")
    if name == "serve_and_ask":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            settings = settings | {"port": free.getsockname()[1]}
    example(name).main(**settings)
    assert re.search(SAYS[name], capfd.readouterr().out)
    assert (tmp_path / MAKES.get(name, "")).exists()


def test_examples_are_short() -> None:
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")
    }
    assert len(lengths) == 7 and max(lengths.values()) < 60
