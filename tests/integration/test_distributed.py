"""Two processes train what one does, stop together, and go on together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from layerroute.integrity import verify
from layerroute.records import read_record
from tests.integration.test_crash import helper
from tests.integration.test_train import assert_same_run, curves
from tests.parity.skipping_models import plain
from tests.tiny import write_corpus, write_recipe

# No noise: two processes cannot draw what one does. The rest is there: balance, budget loss, controller.
RECIPE: dict[str, Any] = {
    "model": {
        "routing": {"estimator": "sigmoid_st", "budget": "controller", "rate": 0.4, "threshold_step": 0.05}
    },
    "objective": {"balance_weight": 0.05, "budget_weight": 0.1},
    # Checkpoints that are no curve points, so that half a point's sums go into them.
    "train": {"save_every": 4, "log_every": 3, "keep_checkpoints": 9},
}
MEASURED = ("loss", "lm_loss", "balance_loss", "budget_loss", "gradient_norm", "learning_rate")


SKIPPING = """
name: skipping
capability: layer_skipping
model: {{name: {folder}/base}}
skip:
  layers: [2, 3, 4]
  router_layer: 2
  rank: 4
  routing: {{router: linear, estimator: selected, exploration: false, budget: controller, rate: 0.6,
            threshold_step: 0.05}}
start: {{method: fresh}}
adapt: {{lora_rank: 2, lora_dropout: 0.0, router_rate: 1.0, skip_rate: 1.0}}
objective: {{ce_weight: 0.3, kd_weight: 0.7, budget_weight: 0.1, lagrangian_step: 0.05}}
data: {{source: files, paths: [{folder}/corpus.txt], document_separator: "\\n\\n", sequence_length: 16,
       validation_share: 0.2, cache_dir: {folder}/cache}}
train: {{max_steps: 20, batch_size: 4, learning_rate: 3.0e-3, log_every: 3, evaluate_every: 5, save_every: 4,
        keep_checkpoints: 9, evaluation_sequences: 6, evaluation_batch_size: 4, precision: fp32, device: cpu,
        threshold_tokens: 0, route_sentences: 0, report_to: []}}
"""


def skipping_recipe(folder: Path) -> Path:
    """A tiny pretrained model with a tokenizer of its own, and a recipe that adds a router, skip paths and LoRA."""
    write_corpus(folder / "corpus.txt")
    trained = ByteLevelBPETokenizer()
    trained.train([str(folder / "corpus.txt")], vocab_size=290, special_tokens=["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="</s>")
    tokenizer.save_pretrained(folder / "base")
    plain("llama", vocab_size=300, num_hidden_layers=6).save_pretrained(folder / "base")
    path = folder / "skipping.yaml"
    path.write_text(SKIPPING.format(folder=folder))
    return path


def run(folder: Path, *cases: str, recipe: Path | None = None) -> dict[str, dict[str, Any]]:
    recipe = recipe or write_recipe(folder, **RECIPE)
    result = helper("several_processes.py", recipe, folder, *cases)
    assert result.returncode == 0, result.stderr
    found = {case["case"]: case for case in map(json.loads, result.stdout.splitlines())}
    for name in cases:
        logs = {log.name: log.read_text() for log in folder.glob(f"{name}-?.log")}
        assert "Traceback" not in "".join(logs.values()), logs
        found[name]["logs"] = logs
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a saved model or router, adapter and all."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.stem}.{name}": value for file in files for name, value in load_file(file).items()}


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same curve to round-off: sums are over halves of a batch, in another order."""
    ours, theirs = curves(one), curves(other)
    assert [(p["step"], p["split"]) for p in ours] == [(p["step"], p["split"]) for p in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for key in left.keys() - {"split"}:
            assert left[key] == pytest.approx(right[key], rel=2e-4, abs=2e-5), (left["step"], key)
    records = [read_record(folder) for folder in (one, other)]
    assert records[0]["tokens_seen"] == records[1]["tokens_seen"]
    for name in ("best", "last"):
        left, right = (weights(folder / name) for folder in (one, other))
        assert left and left.keys() == right.keys()
        for key, value in left.items():
            assert torch.allclose(value, right[key], atol=1e-4), (name, key)
        verify(other / name)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    found = run(tmp_path, "one", "ddp", "fsdp", "shards")
    assert {name: case["codes"] for name, case in found.items()} == {
        "one": [0],
        "ddp": [0, 0],
        "fsdp": [0, 0],
        "shards": [0, 0],
    }
    for name in ("ddp", "fsdp", "shards"):
        assert_equal_runs(tmp_path / "one", tmp_path / name)
        assert {key for point in curves(tmp_path / name) for key in point} >= set(MEASURED)
        # The second process says and writes nothing.
        lines = found[name]["logs"][f"{name}-1.log"].splitlines()
        assert [line for line in lines if not line.startswith("[rank1]:[W")] == []  # torch's own warnings
    assert (tmp_path / "shards" / "checkpoints" / "checkpoint-8" / "shards" / ".metadata").is_file()
    assert not (tmp_path / "shards" / "checkpoints" / "checkpoint-8" / "model.safetensors").exists()
    assert (tmp_path / "fsdp" / "checkpoints" / "checkpoint-8" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp", "shards"])
def test_processes_stop_and_go_on_together(tmp_path: Path, engine: str) -> None:
    term, kill = f"{engine}-term", f"{engine}-kill"
    found = run(tmp_path, engine, term, kill)
    assert found[engine]["codes"] == [0, 0]
    # SIGTERM reached the second process only; both finished the step, saved, and left with its code.
    assert found[term]["codes"] == [143, 143]
    assert found[term]["again"] == [0, 0]
    # SIGKILL: the first one ends by itself, with one line, well within a minute.
    assert found[kill]["codes"] == [1, -9]
    assert found[kill]["seconds"] < 60
    assert "another process of the run ended" in found[kill]["logs"][f"{kill}-0.log"]
    assert found[kill]["again"] == [0, 0]
    for name, step, before in ((term, 12, "interrupted"), (kill, 8, "failed")):
        assert_same_run(tmp_path / engine, tmp_path / name)
        (resumption,) = read_record(tmp_path / name)["resumptions"]
        assert (resumption["step"], resumption["status_before"]) == (step, before)


@pytest.mark.slow
def test_two_processes_train_a_router_as_one_does(tmp_path: Path) -> None:
    """LoRA, skip paths and router of a pretrained model, taught by the same model at full depth."""
    found = run(tmp_path, "one", "ddp", "ddp-kill", "fsdp", recipe=skipping_recipe(tmp_path))
    assert [found[name]["codes"] for name in ("one", "ddp", "ddp-kill", "fsdp")] == [
        [0],
        [0, 0],
        [1, -9],
        [0, 0],
    ]
    for name in ("ddp", "fsdp"):
        assert_equal_runs(tmp_path / "one", tmp_path / name)
        assert {key for point in curves(tmp_path / name) for key in point} >= {
            "kd_loss",
            "budget_loss",
            "multiplier",
        }
    assert found["ddp-kill"]["again"] == [0, 0]
    assert curves(tmp_path / "ddp") == curves(tmp_path / "ddp-kill")
    before, after = weights(tmp_path / "ddp" / "last"), weights(tmp_path / "ddp-kill" / "last")
    assert all(torch.equal(value, after[key]) for key, value in before.items())
