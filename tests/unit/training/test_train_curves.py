import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from layerroute.training.curves import CurvesCallback, curve_point, keep_until, read_points


def state(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=True)


def test_points_have_the_step_and_the_split() -> None:
    train = curve_point(3, {"lm_loss": 1.0, "loss": 1.1, "rate/layer1.mixer": 0.5, "epoch": 0.1})
    assert train == {"step": 3, "split": "train", "lm_loss": 1.0, "loss": 1.1, "rate/layer1.mixer": 0.5}
    validation = curve_point(
        4, {"eval_loss": 2.0, "eval_accuracy": 0.3, "eval_rate/layer1.mixer": 0.2, "epoch": 1}
    )
    assert validation == {
        "step": 4, "split": "validation", "loss": 2.0, "accuracy": 0.3, "rate/layer1.mixer": 0.2
    }  # fmt: skip
    assert curve_point(5, {"train_runtime": 3.0, "train_loss": 2.0}) is None


def test_points_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    lines = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"step": 1, "spl')
    keep_until(path, 2)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["curves.jsonl"]
    keep_until(tmp_path / "none.jsonl", 2)


def test_each_point_is_on_disk_at_once_and_nothing_is_written_after_close(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text(json.dumps({"step": 9, "split": "train"}) + "\n")
    callback = CurvesCallback(path)
    callback.on_train_begin(None, state(0), None)
    callback.on_log(None, state(1), None, logs={"lm_loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]
    callback.close()
    callback.on_log(None, state(2), None, logs={"lm_loss": 0.5})
    callback.close()
    assert len(path.read_text().splitlines()) == 1


def test_the_table_holds_the_same_numbers_and_gets_a_column_when_a_term_begins(tmp_path: Path) -> None:
    path = tmp_path / "curves.jsonl"
    path.write_text(
        json.dumps({"step": 1, "split": "train", "lm_loss": 0.1}) + '\n{"step": 9, "split": "train"}\n'
    )
    callback = CurvesCallback(path)
    callback.on_train_begin(None, state(1), None)
    assert pd.read_csv(tmp_path / "curves.csv")["step"].tolist() == [1], (
        "what a lost future wrote is gone at once"
    )
    callback.on_log(None, state(2), None, logs={"lm_loss": 1 / 3})
    callback.on_log(None, state(2), None, logs={"eval_loss": 2.5, "eval_rate/layer1.mixer": 0.25})
    callback.on_log(None, state(3), None, logs={"lm_loss": 1e-9, "kd_loss": 0.7})
    table = pd.read_csv(tmp_path / "curves.csv")
    rows = [{k: v for k, v in row.items() if v == v} for row in table.to_dict("records")]
    assert rows == read_points(path) and len(rows) == 4
