"""The shell of the examples for Slurm, with stand-ins for Slurm's own commands: which end goes back into the queue."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerroute.records import read_record, write_record

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
