"""What survives: kills at any moment, damaged files, disks that fail."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerroute.data import DataConfig
from layerroute.data.prepare import find_prepared, prepare_data
from layerroute.errors import UserError
from layerroute.recipe import load_recipe
from layerroute.records import read_record
from layerroute.training.checkpoint import step_of
from layerroute.training.hybrid import HybridTrainee, resolved_recipe
from layerroute.training.run_directory import RunDirectory, find_start
from tests.integration.test_train import assert_same_run, train
from tests.tiny import write_corpus, write_recipe

# The state at the end, beyond what the saved models show: optimizer, schedule, random numbers.
STATE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def helper(name: str, *arguments: object, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program beside this file, from the root of the repository."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*wrap, sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def sums(run: Path) -> dict[str, str]:
    """SHA-256 of the state files of the last checkpoint."""
    listed = json.loads((run / "checkpoints" / "checkpoint-20" / "manifest.json").read_text())["files"]
    return {name: listed[name]["sha256"] for name in STATE}


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, pytest.param(16, marks=pytest.mark.walk)])
def test_runs_killed_at_random_moments_end_as_if_nothing_had_been(count: int, tmp_path: Path) -> None:
    routing = {"budget": "controller", "rate": 0.3, "threshold_step": 0.1}
    recipe = write_recipe(
        tmp_path, model={"routing": routing}, train={"save_every": 2, "keep_checkpoints": 2}
    )
    result = helper("killed_runs.py", recipe, tmp_path, count, 20261122)
    assert result.returncode == 0, result.stderr
    kills = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kills) == count
    for kill in kills:
        out = tmp_path / kill["run"]
        assert kill["code"] == 0, (kill, (tmp_path / f"{kill['run']}.log").read_text()[-2000:])
        assert_same_run(tmp_path / "straight", out)
        assert sums(tmp_path / "straight") == sums(out), kill
        record = read_record(out)
        assert record["status"] == "completed"
        if kill["started"]:
            assert record["resumptions"][0]["status_before"] == "interrupted"
        hidden = {path.name for path in out.rglob(".*")} - {".lock"}
        assert not hidden, (kill, hidden)
    in_saves = [kill for kill in kills if any(name != ".lock" for name in kill["left"])]
    assert len(in_saves) >= count // 5, "too few kills came while something was being written"


def damages(folder: Path, names: list[str], count: int, seed: int) -> Iterator[str]:
    """Change a byte of a file, or cut it, again and again; the file is whole again after each."""
    draw = random.Random(seed)
    for number in range(count):
        name = names[number % len(names)]
        path = folder / name
        whole = path.read_bytes()
        position = draw.randrange(len(whole))
        if number % 3 == 2:
            told, damaged = f"{name} cut at {position}", whole[:position]
        else:
            bits = draw.randrange(1, 256)
            told = f"{name} xor {bits} at {position}"
            damaged = whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :]
        path.write_bytes(damaged)
        yield told
        path.write_bytes(whole)


def test_every_damage_to_a_checkpoint_a_cache_and_a_record_is_found(
    finished_run: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(finished_run.parent / "tiny.yaml"), {})
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished_run, run.path)
    data = recipe.data
    cache = tmp_path / "cache"
    shutil.copytree(data.cache_dir, cache)
    moved = DataConfig(**{**vars(data), "cache_dir": str(cache)})
    plain = resolved_recipe(recipe)
    record = read_record(run.record)

    # 80 in the newest checkpoint: the older one is taken, and no other.
    content = json.loads(run.record.read_text())
    for mark in ("sealed", "checksum"):
        del content[mark]
    unfinished = {**content, "status": "interrupted"}
    whole_record = run.record.read_bytes()
    run.record.write_text(json.dumps(unfinished))
    older, newest = sorted(run.checkpoints.iterdir())
    assert find_start(run, plain, "auto").checkpoint == newest
    files = sorted(path.name for path in newest.iterdir())
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "tokenizer.json", "manifest.json"} <= set(
        files
    )
    for told in damages(newest, files, 80, seed=1):
        start = find_start(run, plain, "auto")
        assert (start.checkpoint, [path for path, _ in start.damaged]) == (older, [newest]), told
    assert find_start(run, plain, "auto").checkpoint == newest
    run.record.write_bytes(whole_record)

    # 80 in the tokens and the tokenizer.
    prepared = find_prepared(moved)
    assert prepared is not None
    entry = prepared.folder
    files = sorted(path.name for path in entry.iterdir())
    assert {"train.bin", "validation.bin", "tokenizer.json", "tokenizer_config.json", "manifest.json"} == set(
        files
    )
    for told in damages(entry, files, 80, seed=2):
        assert find_prepared(moved) is None, told
    for told in damages(entry, ["train.bin", "tokenizer.json", "manifest.json"], 3, seed=3):
        assert prepare_data(moved, progress=False).fingerprint == prepared.fingerprint, told
    assert find_prepared(moved) is not None

    # 40 in the record.
    for _ in damages(run.path, ["record.json"], 40, seed=4):
        with pytest.raises(UserError, match="record"):
            read_record(run.path)
    assert read_record(run.path) == record


@pytest.mark.slow
def test_a_run_goes_on_from_an_older_checkpoint_where_the_newest_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerroute.training import run as run_module

    recipe = write_recipe(tmp_path)
    assert train(recipe, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "finish", lambda self: (_ for _ in ()).throw(MemoryError("no more")))
        with pytest.raises(MemoryError):
            train(recipe, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-20"
    data = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    capsys.readouterr()
    assert train(recipe, tmp_path / "run") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("layerroute: ")]
    assert told == [
        "layerroute: checkpoint-20 is damaged (the SHA-256 of optimizer.pt differs); going on from checkpoint-15"
    ]
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    resumption = read_record(tmp_path / "run")["resumptions"][-1]
    assert resumption["note"] == told[0].removeprefix("layerroute: ")
    assert (resumption["step"], resumption["status_before"]) == (15, "failed")
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["checkpoint-15", "checkpoint-20", "damaged-checkpoint-20"]


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def can_mount() -> bool:
    """Whether this user may mount a file system in a namespace of their own."""
    script = "mount -t tmpfs -o size=64k none /mnt"
    found = shutil.which("unshare")
    command = [*NAMESPACE, "sh", "-c", script]
    return bool(found) and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no user namespaces here: nothing can be mounted")
def test_disks_that_fill_up_become_read_only_or_vanish(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"report_to": ["tensorboard"]})
    assert train(recipe, tmp_path / "straight") == 0
    result = helper("failing_disks.py", recipe, tmp_path, wrap=NAMESPACE)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = {case["case"]: case for case in map(json.loads, result.stdout.splitlines())}
    told = {
        "full at once": "No space left on device",
        "full": "No space left on device",
        "nearly full": "No space left on device",
        "read-only": "Read-only file system",
        "vanished": "the folder of the run is gone",
    }
    assert found.keys() == told.keys()
    for name, words in told.items():
        case = found[name]
        assert case["code"] == 1, case
        assert "Traceback" not in case["errors"]
        lines = [
            line for line in case["errors"].splitlines() if line.startswith("layerroute: cannot write to")
        ]
        assert len(lines) == 1, case["errors"]
        assert words in lines[0]
        if name == "vanished":
            assert case["made"] == [], "nothing is written where the folder was"
        else:
            assert "can go on from" in lines[0] and f"checkpoint-{case['last']}" in lines[0]
            assert case["last"] >= 5
        # The disk is in order again, and the same command goes on from the checkpoint that survived.
        assert case["resumed"] == 0, case
        assert case["going_on_from"] == case["last"]
        assert case["same"], f"{name}: the end is not that of a run without trouble"


def test_data_that_make_the_loss_nan_stop_the_run_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One letter's embedding is NaN: the run goes well until the data come to it."""
    recipe = write_recipe(tmp_path, train={"save_every": 1, "evaluate_every": 0, "route_sentences": 0})
    held_out = write_corpus(tmp_path / "held-out.txt", documents=12)
    corpus = tmp_path / "corpus.txt"
    documents = corpus.read_text().split("\n\n")
    documents[::12] = [f"ζ {text} {number}" for number, text in enumerate(documents[::12])]
    corpus.write_text("\n\n".join(documents))
    build = HybridTrainee.build

    def poisoned(self: Any, **keywords: Any) -> None:
        build(self, **keywords)
        letter = {*self.tokenizer("ζ")["input_ids"]} - {*self.tokenizer(held_out.read_text())["input_ids"]}
        assert letter
        with torch.no_grad():
            self.model.get_input_embeddings().weight[list(letter)] = math.nan

    monkeypatch.setattr(HybridTrainee, "build", poisoned)
    assert train(recipe, tmp_path / "run", f"--data.validation_paths=[{held_out}]") == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "so the step was not taken" in text]
    record = read_record(tmp_path / "run")
    assert (record["status"], record["error"]) == ("failed", line.removeprefix("layerroute: "))
    last = max((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=step_of)
    assert f"the training loss is nan at step {step_of(last) + 1}, so the step was not taken; " in line
    assert str(last) in line
    for name, value in load_file(last / "model.safetensors").items():
        assert "embed_tokens" in name or value.isfinite().all(), name
