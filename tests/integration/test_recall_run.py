"""A run on recall data from recipe to record, and its checkpoint evaluated again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.cli.main import main
from layerroute.data.configuration import DataConfig
from layerroute.data.recall.configuration import CurriculumConfig, RecallConfig
from layerroute.data.recall.prepared import RecallData
from layerroute.records import read_record
from layerroute.training.samples import RecallSamples
from tests.integration.test_train import assert_same_run, curves, stop_after
from tests.tiny import RECIPE, merge

DATA: dict[str, Any] = {
    "source": "recall",
    "sequence_length": 24,
    "recall": {
        "pairs": 4,
        "keys": 8,
        "values": 8,
        "curriculum": {"start": 2},
        "evaluation_multiples": [1, 2],
    },
}


def write(folder: Path, **sections: Any) -> Path:
    path = folder / "recall.yaml"
    content = merge({**RECIPE, "name": "recall", "data": DATA}, sections)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_recall_run_is_scored_at_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", str(write(tmp_path)), "--out", str(out)]) == 0
    record = read_record(out)
    assert record["metrics"]["bigram_loss"] is None
    recall = record["recall"]
    assert [point["length"] for point in recall["by_length"]] == [24, 48]
    first = recall["by_length"][0]
    assert first["answers"] == 6 * 4
    assert first["loss"] == pytest.approx(record["metrics"]["validation_loss"], rel=1e-6)
    assert first["accuracy"] == record["metrics"]["validation_accuracy"]
    assert 0 <= first["mean_rate"] <= 1
    assert recall["chance"] == 1 / 8
    cache = record["cache"]
    assert cache["read_per_token"] == cache["keys_values"] + cache["state"] > cache["state"] > 0
    assert cache["context_length"] == 24
    assert sum(point["answers"] for point in recall["by_distance"]) == 24
    capsys.readouterr()
    assert main(["evaluate", str(out / "last"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["tokens"] == 24
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_run_that_waits_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate and pairs by a clock that stands still at some steps: a run in two parts is the run in one."""
    data = {
        **DATA,
        "recall": {**DATA["recall"], "pairs": 6, "noise": 0.2, "curriculum": {"shortest": 12, "finish": 0.1}},
    }
    train = {"wait_above": 3.3, "save_every": 4, "gradient_accumulation": 2, "log_every": 1}
    objective = {"budget_weight": 1.0, "rate": {"start": 1.0, "begin": 0.0, "finish": 1.0}}
    recipe = write(tmp_path, data=merge(data, {"sequence_length": 36}), train=train, objective=objective)
    assert main(["train", str(recipe), "--out", str(tmp_path / "straight")]) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert main(["train", str(recipe), "--out", str(tmp_path / "parts")]) == 143
    assert main(["train", str(recipe), "--out", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    points = [point for point in curves(tmp_path / "straight") if point["split"] == "train"]
    waited = [point["waited"] for point in points]
    assert 2 < waited[-1] < len(points) - 4, "it is to wait, and to go on"
    targets = [point["rate_target"] for point in points]
    for at in range(1, len(points)):
        stood = waited[at - 1] - (waited[at - 2] if at > 1 else 0)
        assert (targets[at] == targets[at - 1]) == bool(stood)


def test_a_sequence_that_is_too_short_is_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["train", str(write(tmp_path)), "--out", str(out), "--data.sequence_length", "15"]) == 2
    assert "needs 16 tokens" in capsys.readouterr().err
    assert not (out / "record.json").exists()


def test_samples_depend_on_their_position_alone(tmp_path: Path) -> None:
    from layerroute.recipe import load_recipe

    data = RecallData(load_recipe(write(tmp_path)).data)
    one, two = (RecallSamples(data, samples=12, batch_size=4, seed=3) for _ in range(2))
    forwards = one.__getitems__(list(range(12)))
    backwards = [two.__getitems__([position])[0] for position in reversed(range(12))][::-1]
    for left, right in zip(forwards, backwards, strict=True):
        assert left["input_ids"].tolist() == right["input_ids"].tolist()
        assert (left["labels"] >= 0).sum() == 4
    assert len({tuple(sample["input_ids"].tolist()) for sample in forwards}) == 12


def test_short_sequences_come_many_in_the_place_of_one() -> None:
    """Every sequence of a batch is handed out once, whatever micro-batches ask for."""
    recall = RecallConfig(pairs=8, noise=0.5, curriculum=CurriculumConfig(start=2, shortest=16))
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=64))
    samples = RecallSamples(data, samples=8, batch_size=2, seed=3)
    for batch in (0, 3):
        whole = [row["input_ids"].tolist() for row in samples.__getitems__([2 * batch, 2 * batch + 1])]
        parts = [row["input_ids"].tolist() for n in (0, 1) for row in samples.__getitems__([2 * batch + n])]
        made = data.training_batch(batch, 4, rows=2, seed=3)[0].tolist()
        assert whole == parts == made
        assert len(made) == (8 if batch == 0 else 2)
