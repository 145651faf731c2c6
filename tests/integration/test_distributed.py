"""Two processes train what one does, stop together, and go on together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerroute.integrity import verify
from layerroute.records import read_record
from tests.integration.test_crash import helper
from tests.integration.test_train import assert_same_run, curves
from tests.parity.skipping_models import plain
from tests.tiny import write_corpus, write_recipe
from tests.tiny_pretrained import write_tokenizer

# No noise: two processes cannot draw what one does. The rest is there: balance, budget loss, controller, a schedule
# that waits for the loss at some steps.
RECIPE: dict[str, Any] = {
    "model": {
        "routing": {"estimator": "sigmoid_st", "budget": "controller", "rate": 0.4, "threshold_step": 0.05}
    },
    "objective": {
        "balance_weight": 0.05,
        "budget_weight": 0.1,
        "rate": {"start": 0.9, "begin": 0.0, "finish": 1.0},
    },
    # Checkpoints that are no curve points, so that half a point's sums go into them.
    "train": {"max_steps": 16, "save_every": 4, "log_every": 3, "keep_checkpoints": 9, "wait_above": 5.5},
}
MEASURED = ("loss", "lm_loss", "balance_loss", "budget_loss", "gradient_norm", "learning_rate")
# Minutes each: the plain run has DDP for the hybrid model and shards for a router; the walk has the other way round.
WALK = pytest.mark.walk


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
train: {{max_steps: 16, batch_size: 4, learning_rate: 3.0e-3, log_every: 3, evaluate_every: 5, save_every: 4,
        keep_checkpoints: 9, evaluation_sequences: 6, evaluation_batch_size: 4, precision: fp32, device: cpu,
        threshold_tokens: 0, route_sentences: 0, report_to: []}}
"""


def skipping_recipe(folder: Path) -> Path:
    """A tiny pretrained model with a tokenizer of its own, and a recipe that adds a router, skip paths and LoRA."""
    write_corpus(folder / "corpus.txt")
    write_tokenizer(folder / "base", folder / "corpus.txt")
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


def assert_equal_runs(one: Path, other: Path, *, relative: float = 2e-4, absolute: float = 2e-5) -> None:
    """The same curve to round-off: sums are over halves of a batch, in another order."""
    ours, theirs = curves(one), curves(other)
    assert [(p["step"], p["split"]) for p in ours] == [(p["step"], p["split"]) for p in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for key in left.keys() - {"split"}:
            assert left[key] == pytest.approx(right[key], rel=relative, abs=absolute), (left["step"], key)
    records = [read_record(folder) for folder in (one, other)]
    assert records[0]["tokens_seen"] == records[1]["tokens_seen"]
    for name in ("best", "last"):
        left, right = (weights(folder / name) for folder in (one, other))
        assert left and left.keys() == right.keys()
        for key, value in left.items():
            assert torch.allclose(value, right[key], atol=5 * absolute), (name, key)
        verify(other / name)


def lines_of_second(logs: dict[str, str], name: str) -> list[str]:
    """What the second process said; it is to say nothing but the libraries' warnings."""
    lines = logs[f"{name}-1.log"].splitlines()
    return [line for line in lines if not line.startswith(("[rank1]:[W", "[transformers]"))]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *(pytest.param(it, marks=WALK) for it in ("fsdp", "shards"))])
def test_two_processes_train_what_one_does_stop_together_and_go_on(tmp_path: Path, engine: str) -> None:
    term, kill, lost = f"{engine}-term", f"{engine}-kill", f"{engine}-lost"
    cases = ["one", engine, term, kill, *([lost] if engine == "ddp" else [])]
    found = run(tmp_path, *cases)
    assert (found["one"]["codes"], found[engine]["codes"]) == ([0], [0, 0])
    assert_equal_runs(tmp_path / "one", tmp_path / engine)
    assert {key for point in curves(tmp_path / engine) for key in point} >= set(MEASURED)
    assert [point["waited"] for point in curves(tmp_path / engine) if "waited" in point][-1] == 7
    assert lines_of_second(found[engine]["logs"], engine) == []
    processes = {"count": 2, "engine": "ddp" if engine == "ddp" else "fsdp"}
    assert read_record(tmp_path / engine)["processes"] == processes
    checkpoint = tmp_path / engine / "checkpoints" / "checkpoint-8"
    assert (checkpoint / "shards" / ".metadata").is_file() == (engine == "shards")
    assert (checkpoint / "model.safetensors").is_file() == (engine != "shards")
    # SIGTERM reached the second process only; both finished the step, saved, and left with its code.
    assert found[term]["codes"] == [143, 143]
    # SIGKILL of one: the other ends by itself, with one line, well within a minute.
    assert found[kill]["codes"] == [1, -9]
    resumed = [(term, 12, "interrupted"), (kill, 8, "failed")]
    if engine == "ddp":
        assert found[lost]["codes"] == [-9, 1]
        resumed.append((lost, 8, "interrupted"))
    for name, step, before in resumed:
        if name != term:
            assert found[name]["seconds"] < 60
            assert "another process of the run ended" in "".join(found[name]["logs"].values())
        assert found[name]["again"] == [0, 0]
        assert_same_run(tmp_path / engine, tmp_path / name)
        (resumption,) = read_record(tmp_path / name)["resumptions"]
        assert (resumption["step"], resumption["status_before"]) == (step, before)


@pytest.mark.walk
def test_mixed_precision_checkpointing_and_accumulation_change_nothing_over_processes(tmp_path: Path) -> None:
    found = run(tmp_path, "mixed_one", "mixed_ddp", "mixed_fsdp")
    assert [case["codes"] for case in found.values()] == [[0], [0, 0], [0, 0]]
    one = tmp_path / "mixed_one"
    assert read_record(one)["precision"] == "bf16"
    for name in ("mixed_ddp", "mixed_fsdp"):
        assert_equal_runs(one, tmp_path / name, relative=2e-2, absolute=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "events", [["shards-kill"], pytest.param(["ddp-kill", "fsdp-term"], marks=WALK)], ids=" ".join
)
def test_two_processes_train_a_router_as_one_does(events: list[str], tmp_path: Path) -> None:
    """LoRA, skip paths and router of a pretrained model, taught by the same model at full depth."""
    engines = [event.partition("-")[0] for event in events]
    found = run(tmp_path, "one", *engines, *events, recipe=skipping_recipe(tmp_path))
    assert found["one"]["codes"] == [0]
    for engine, event in zip(engines, events, strict=True):
        assert found[engine]["codes"] == [0, 0]
        assert_equal_runs(tmp_path / "one", tmp_path / engine)
        assert {key for point in curves(tmp_path / engine) for key in point} >= {
            "kd_loss",
            "budget_loss",
            "multiplier",
        }
        assert found[event]["codes"] == ([1, -9] if event.endswith("kill") else [143, 143])
        assert found[event]["again"] == [0, 0]
        assert curves(tmp_path / engine) == curves(tmp_path / event), event
        before, after = weights(tmp_path / engine / "last"), weights(tmp_path / event / "last")
        assert all(torch.equal(value, after[key]) for key, value in before.items()), event
        checkpoint = tmp_path / engine / "checkpoints" / "checkpoint-8"
        assert (checkpoint / "shards" / ".metadata").is_file() == (engine == "shards")
        assert (checkpoint / "router.safetensors").exists() == (engine != "shards")


ROOT = Path(__file__).parents[2]


def node8(recipe: Path, out: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """The example for one node with two processes, as users call it: command and environment."""
    command = ["bash", str(ROOT / "examples" / "node8.sh"), str(recipe), "--out", str(out)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return command, {**os.environ, "GPUS": "2", "OMP_NUM_THREADS": "1", "PATH": path, **environment}


@pytest.mark.walk
def test_the_example_for_one_node_is_preempted_and_goes_on(tmp_path: Path) -> None:
    """`torchrun` itself: SIGTERM to the launcher, and the same command again."""
    recipe = write_recipe(tmp_path, train={"max_steps": 150, "save_every": 50, "evaluate_every": 50})
    out = tmp_path / "run"
    command, environment = node8(recipe, out)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        deadline = time.monotonic() + 300
        while not (out / "curves.jsonl").is_file() or not (out / "curves.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        told = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0
    record = read_record(out)
    assert record["status"] == "interrupted", told
    assert record["processes"] == {"count": 2, "engine": "ddp"}
    assert "SIGTERM" in record["error"], told
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    record = read_record(out)
    assert record["status"] == "completed"
    assert record["resumptions"][0]["step"] > 0


@pytest.mark.slow
def test_the_example_for_one_node_shards(tmp_path: Path) -> None:
    """`accelerate launch` with `examples/fsdp2.yaml`, let onto CPUs as the other tests are."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    from tests.integration.several_processes import shard_on_cpus\n"
        "    shard_on_cpus()\n"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")]))
    command, environment = node8(
        write_recipe(tmp_path, **RECIPE), tmp_path / "run", ENGINE="fsdp", PYTHONPATH=paths
    )
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = read_record(tmp_path / "run")
    assert (record["status"], record["processes"]) == ("completed", {"count": 2, "engine": "fsdp"})
    assert run(tmp_path, "one")["one"]["codes"] == [0]
    assert_equal_runs(tmp_path / "one", tmp_path / "run")
