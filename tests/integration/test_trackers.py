"""Trackers by name: each curve point arrives once, under the run's name, and nothing else has to be set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.test_train import curves, train
from tests.tiny import write_recipe

# What transformers' callback uses of trackio's interface; writes down what it is given.
TRACKIO = """
import json, pathlib

__version__ = "0.0"
_file = pathlib.Path(__file__).with_name("told.jsonl")

def _tell(**line):
    with _file.open("a") as file:
        file.write(json.dumps(line, default=str) + "\\n")

def init(**arguments):
    _tell(call="init", project=arguments["project"], name=arguments["name"])

def log(values, step=None):
    _tell(call="log", values=values, step=step)

def finish():
    _tell(call="finish")

class config(dict):
    def update(self, values, allow_val_change=False):
        _tell(call="config", values={key: str(value) for key, value in values.items()})

class _Variable:
    def get(self):
        return None

class context_vars:
    current_space_id = _Variable()

config = config()
"""


def test_a_tracker_gets_every_point_of_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "trackio"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TRACKIO)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "s3cr3t" * 4)
    recipe = write_recipe(tmp_path, train={"report_to": ["trackio"], "max_steps": 6})
    try:
        assert train(recipe, tmp_path / "run") == 0
    finally:
        sys.modules.pop("trackio", None)
    text = (package / "told.jsonl").read_text()
    assert "s3cr3t" not in text
    told = [json.loads(line) for line in text.splitlines()]
    assert told[0] == {"call": "init", "project": "layerroute", "name": "tiny-seed7"}
    assert told[-1]["call"] == "finish"
    logged = [line["values"] for line in told if line["call"] == "log"]
    for split, prefix, key in (("train", "train", "lm_loss"), ("validation", "eval", "loss")):
        expected = [point[key] for point in curves(tmp_path / "run") if point["split"] == split]
        assert [values[f"{prefix}/{key}"] for values in logged if f"{prefix}/{key}" in values] == expected
    assert not (tmp_path / "run" / "tensorboard").exists()
