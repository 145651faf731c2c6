"""Studies of tiny runs through the command line: workers share, die and stop, and every run is done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.cli.main import main
from layerroute.records import read_record
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from layerroute.studies.session import Session
from layerroute.studies.worker import work
from tests.tiny import write_recipe

LONG = 600
"""Steps of a run that is still at work seconds after its first checkpoint."""


def write_study(folder: Path, *, steps: int, **content: Any) -> Path:
    # The first checkpoint comes early in a long run: a test that stops it there has seconds, even on a busy machine.
    train = {
        "max_steps": steps,
        "evaluate_every": steps,
        "save_every": 5 if steps < 100 else 20,
        "route_sentences": 2,
    }
    write_recipe(folder, name="routed", train=train)
    write_recipe(folder, name="static", train=train, model={"layer_pattern": ["gdn", "softmax"]})
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"arms": ["routed.yaml", "static.yaml"], "seeds": [1, 2], **content}))
    return path


def session_of(study: Path, out: Path) -> Session:
    return Session(Plan(load_study(study)), out)


def start(study: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "layerroute", "study", str(study), "--out", str(out), *more],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def at_work(session: Session) -> str | None:
    """A run that is being trained and has a checkpoint."""
    for key, state in session.states().items():
        if state.status == "running" and list((session.out / key / "checkpoints").glob("checkpoint-*")):
            return key
    return None


@pytest.mark.walk
def test_two_workers_share_a_study_and_a_killed_one_costs_one_retry(tmp_path: Path) -> None:
    study, out = write_study(tmp_path, steps=LONG), tmp_path / "out"
    session = session_of(study, out)
    process = start(study, out, "--workers", "2", "--json")
    key = wait_for(lambda: at_work(session))
    worker = session.states()[key].attributes["worker"].split(":")[-2]
    os.kill(int(worker), signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert summary["counts"] == {"completed": 4, "failed": 0, "running": 0, "waiting": 0}
    assert {run["run"]: run["attempts"] for run in summary["runs"] if run["attempts"] != 1} == {key: 2}
    for run in summary["runs"]:
        record = read_record(out / run["run"])
        assert (record["status"], record["metrics"]["steps"]) == ("completed", LONG)
        log = (out / "logs" / f"{run['run'].replace('/', '_')}.log").read_text()
        assert log.count("completed   validation loss") == 1
        assert ("Going on from" in log) == (run["run"] == key)
    assert (out / "report" / "index.html").is_file()
    assert set(summary["front"]) <= {run["run"] for run in summary["runs"]}


@pytest.mark.slow
def test_ctrl_c_leaves_a_study_that_goes_on(tmp_path: Path) -> None:
    study, out = write_study(tmp_path, steps=LONG, arms=["static.yaml"], seeds=[1]), tmp_path / "out"
    session = session_of(study, out)
    process = start(study, out)
    wait_for(lambda: at_work(session))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert read_record(out / "runs/static-seed1")["status"] == "interrupted"
    (state,) = session.states().values()
    assert (state.status, state.attempts) == ("waiting", 0), "no retry was spent"
    assert json.loads((out / "study.json").read_text())["counts"]["waiting"] == 1
    assert work(session) == 1
    record = read_record(out / "runs/static-seed1")
    assert (record["status"], record["metrics"]["steps"]) == ("completed", LONG)
    assert "Going on from" in (out / "logs/runs_static-seed1.log").read_text()


def test_failures_are_kept_and_finished_runs_are_skipped(tmp_path: Path) -> None:
    broken = {"recipe": "static.yaml", "name": "broken", "overrides": {"data.paths": ["nowhere.txt"]}}
    study = write_study(tmp_path, steps=4, arms=["static.yaml", broken], seeds=[1])
    session = session_of(study, tmp_path / "out")
    session.begin()
    assert work(session) == 2
    states = session.states()
    assert states["runs/static-seed1"].values is not None
    failed = states["runs/broken-seed1"]
    assert failed.status == "failed"
    assert "nowhere.txt" in str(failed.error)
    record = tmp_path / "out/runs/static-seed1/record.json"
    before = record.stat().st_mtime_ns
    # The storage is lost: the run's own folder still says that it is done.
    (tmp_path / "out/study.db").unlink()
    again = session_of(study, tmp_path / "out")
    again.begin()
    work(again)
    assert again.states()["runs/static-seed1"].values == states["runs/static-seed1"].values
    assert record.stat().st_mtime_ns == before


def test_arms_choose_their_learning_rate_and_the_trials_stay_out_of_the_report(tmp_path: Path) -> None:
    tune = {"grid": {"train.learning_rate": [1e-6, 1e-2]}, "seeds": [9], "overrides": {"train.max_steps": 4}}
    study = write_study(tmp_path, steps=6, arms=["static.yaml"], seeds=[1], tune=tune)
    session = session_of(study, tmp_path / "out")
    session.begin()
    assert work(session) == 3
    record = read_record(tmp_path / "out/runs/static-seed1")
    assert record["recipe"]["train"]["learning_rate"] == 1e-2, "one of them learns nothing"
    assert record["metrics"]["steps"] == 6
    from layerroute.lab.runs import load_runs

    assert [run.seed for run in load_runs([tmp_path / "out"])] == [1]
    assert len(load_runs([tmp_path / "out/search"])) == 2


def test_the_plan_is_told_and_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write_study(tmp_path, steps=4)
    assert main(["study", str(study), "--plan", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [
        "runs/routed-seed1",
        "runs/static-seed1",
        "runs/routed-seed2",
        "runs/static-seed2",
    ]
    assert not (tmp_path / "out").exists()


def test_studies_are_validated_with_all_their_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, steps=4, overrides={"train.batch_size": 8})
    assert main(["validate", str(study)]) == 0
    assert "4 runs in all" in capsys.readouterr().out
    study = write_study(tmp_path, steps=4, overrides={"train.batch_sice": 8})
    assert main(["validate", str(study)]) == 2
    assert "Did you mean 'batch_size'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "code"),
    [pytest.param(99.0, 0, marks=pytest.mark.walk, id="passed"), pytest.param(0.5, 1, id="not passed")],
)
def test_a_gate_is_told_and_a_study_that_does_not_pass_it_goes_no_further(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], most: float, code: int
) -> None:
    gate = {"conditions": [{"arm": "static", "most": most}], "metric": "metrics.validation_loss"}
    tune = {"grid": {"train.learning_rate": [1e-3]}, "seeds": [8]}
    study, out = write_study(tmp_path, steps=2, seeds=[1], tune=tune, gate=gate), tmp_path / "out"
    for _ in range(2):  # the same command again says the same, and runs nothing twice
        assert main(["study", str(study), "--out", str(out), "--json"]) == code
        told = capfd.readouterr()
        summary = json.loads(told.out)
        assert summary["gate"]["passed"] == (code == 0) and summary["gate"]["verdict"] in told.err
        keys = {run["run"] for run in summary["runs"]}
        assert {run["attempts"] for run in summary["runs"]} == {1}
    if code:
        assert keys == {"search/static-learning_rate0.001-seed8"}
        assert "this task cannot tell" in told.err and not (out / "report").exists()
    else:
        assert {key for key in keys if key.startswith("runs/")} == {"runs/routed-seed1", "runs/static-seed1"}
        assert (out / "report" / "index.html").exists()
