"""Whole runs of a tiny recipe through the command line."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerroute.cli.main import main
from layerroute.evaluation.loading import load_model
from layerroute.evaluation.perplexity import evaluate
from layerroute.recipe import load_recipe
from layerroute.records import KILLED, read_record
from layerroute.training import arguments
from layerroute.training import run as run_module
from layerroute.training import trainer as trainer_module
from layerroute.training.errors import TrainingDiverged
from layerroute.training.run import make_trainee
from tests.tiny import write_recipe

WALL_TIME = ("tokens_per_second",)


def curves(run: Path) -> list[dict[str, Any]]:
    """The curve without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in WALL_TIME} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(one: Path, two: Path) -> None:
    assert curves(one) == curves(two)
    for name in ("best", "last"):
        left, right = weights(one / name), weights(two / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[key]) for key, value in left.items()), name
    left, right = (read_record(run) for run in (one, two))
    for section in ("metrics", "routing", "tokens_seen", "parameters", "data", "flops"):
        assert left[section] == right[section], section


def train(recipe: Path, out: Path, *more: str) -> int:
    return main(["train", str(recipe), "--out", str(out), *more])


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to this process in the middle of step ``step``."""
    original = trainer_module.RoutedTrainer.compute_loss
    sent: list[int] = []

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step - 1 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer_module.RoutedTrainer, "compute_loss", compute_loss)


ROUTINGS: dict[str, dict[str, Any]] = {
    "gumbel": {},
    "controller": {"routing": {"budget": "controller", "rate": 0.25, "threshold_step": 0.1}},
    "quantile": {"routing": {"budget": "quantile", "rate": 0.25, "estimator": "sigmoid_st"}},
    "random": {"routing": {"control": "random", "rate": 0.25}},
    "static": {"layer_pattern": ["gdn", "softmax"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTINGS)
def test_a_run_in_two_parts_is_the_run_in_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Step 10 is neither a curve point (every 3) nor a checkpoint of its own (every 4).
    settings: dict[str, Any] = {
        "model": ROUTINGS[name],
        "train": {"save_every": 4, "gradient_accumulation": 2},
        # The budget's loss too, so that the rate is held where the router's own budget does not hold it.
        "objective": {"budget_weight": 1.0, "rate": {"start": 1.0, "begin": 0.0, "finish": 1.0}},
    }
    recipe = write_recipe(tmp_path, **settings)
    assert train(recipe, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        assert train(recipe, tmp_path / "parts") == 143
    record = read_record(tmp_path / "parts")
    assert (record["status"], record["error"]) == ("interrupted", "interrupted by SIGTERM")
    assert (tmp_path / "parts" / "checkpoints" / "checkpoint-10").is_dir()
    assert train(recipe, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "parts")
    assert len({(point["step"], point["split"]) for point in curves(tmp_path / "parts")}) == len(
        curves(tmp_path / "parts")
    )


HELD = {
    "controller": {"model": {"routing": {"budget": "controller", "rate": 0.25}}},
    "loss": {"model": {"routing": {"rate": 0.25}}, "objective": {"budget_weight": 1.0}},
    "quantile": {"model": {"routing": {"budget": "quantile", "rate": 0.25}}},
}


@pytest.mark.parametrize("name", HELD)
def test_the_rate_asked_for_is_served_and_setting_it_leaves_training_alone(name: str, tmp_path: Path) -> None:
    """All with Gumbel noise, which training has and inference has not."""
    folders = {0: tmp_path / "at_the_end", 5: tmp_path / "often"}
    for every, folder in folders.items():
        folder.mkdir()
        train_settings = {"evaluate_every": every, "threshold_tokens": 512, "evaluation_sequences": 24}
        assert train(write_recipe(folder, train=train_settings, **HELD[name]), folder / "run") == 0
    routing = read_record(folders[0] / "run")["routing"]
    assert routing["mean_rate"] == pytest.approx(0.25, abs=0.06)
    assert routing["asked_rate"] == 0.25
    trained = [
        [point for point in curves(folder / "run") if point["split"] == "train"]
        for folder in folders.values()
    ]
    assert trained[0] == trained[1]
    rates = [value for key, value in trained[0][-1].items() if key.startswith("rate/")]
    assert routing["trained_rate"] == pytest.approx(sum(rates) / 2)


@pytest.mark.parametrize("name", [*HELD, "random"])
def test_every_evaluation_is_at_the_rate_asked_whatever_the_schedule(name: str, tmp_path: Path) -> None:
    """Else an early one, at which nearly all tokens attend, would be the best, and be what every command loads."""
    given = copy.deepcopy(HELD.get(name, {"model": {"routing": {"control": "random", "rate": 0.25}}}))
    given.setdefault("objective", {})["rate"] = {"start": 1.0, "begin": 0.3, "finish": 1.0}
    settings = {"evaluate_every": 3, "threshold_tokens": 512, "evaluation_sequences": 24}
    assert train(write_recipe(tmp_path, train=settings, **given), tmp_path / "run") == 0
    points = curves(tmp_path / "run")
    asked = [point["rate_target"] for point in points if point["split"] == "train"]
    assert (asked[0], asked[-1]) == (1.0, 0.25)
    evaluated = [point for point in points if point["split"] != "train"]
    assert len(evaluated) > 4
    for point in evaluated:
        rates = [value for key, value in point.items() if key.startswith("rate/")]
        assert sum(rates) / len(rates) == pytest.approx(0.25, abs=0.1)
    best = load_model(tmp_path / "run", device="cpu")
    trainee = make_trainee(load_recipe(tmp_path / "run" / "recipe.yaml"))
    trainee.read(progress=False)
    found = evaluate(best.model, trainee.validation())
    assert found.loss == pytest.approx(
        read_record(tmp_path / "run")["metrics"]["best_validation_loss"], abs=1e-5
    )


def test_a_run_goes_on_from_an_older_checkpoint_and_in_another_folder(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"keep_checkpoints": 4})
    assert train(recipe, tmp_path / "straight") == 0
    shutil.copytree(tmp_path / "straight" / "checkpoints" / "checkpoint-5", tmp_path / "kept")
    older = tmp_path / "straight" / "checkpoints" / "checkpoint-10"
    assert train(recipe, tmp_path / "other", "--resume", str(older)) == 0
    assert_same_run(tmp_path / "straight", tmp_path / "other")


def test_a_run_killed_after_its_last_checkpoint_is_only_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    assert train(recipe, tmp_path / "straight") == 0
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "finish", lambda self: (_ for _ in ()).throw(MemoryError("no more")))
        with pytest.raises(MemoryError):
            train(recipe, tmp_path / "parts")
    assert read_record(tmp_path / "parts")["error"] == "MemoryError: no more"
    assert train(recipe, tmp_path / "parts") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.slow
def test_a_killed_process_loses_nothing_but_steps(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 400, "save_every": 5})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "layerroute", "train", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-10"
    deadline = time.monotonic() + 300
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    record = read_record(tmp_path / "run")
    assert (record["status"], record["error"]) == ("interrupted", KILLED)
    # A shorter run would be another recipe: only see that the same one goes on from where it was, and stops when asked.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step") and len(seen) > 3:
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    text = "".join(seen) + rest
    assert "Going on from" in text
    assert "The same command goes on from" in text
    assert "Traceback" not in errors
    assert read_record(tmp_path / "run")["status"] == "interrupted"


def test_what_a_finished_run_leaves(finished_run: Path) -> None:
    record = read_record(finished_run)
    assert record["status"] == "completed"
    metrics = record["metrics"]
    assert metrics["steps"] == 30
    assert metrics["best_validation_loss"] <= metrics["validation_loss"]
    assert metrics["bigram_loss"] > 0
    assert record["tokens_seen"] == 30 * 4 * 16
    assert record["flops"]["executed_per_token"] > 0
    assert record["flops"]["routed_per_token"] < record["flops"]["forward_per_token"]
    assert record["routing"]["sites"] == ["layer1.mixer", "layer2.mixer"]
    assert record["timing"]["tokens_per_second"] > 0
    points = curves(finished_run)
    assert [p["step"] for p in points if p["split"] == "train"] == [1, *range(3, 31, 3)]
    validation = [p for p in points if p["split"] == "validation"]
    assert [p["step"] for p in validation] == list(range(5, 31, 5))
    assert validation[-1]["loss"] == metrics["validation_loss"]
    assert min(p["loss"] for p in validation) == metrics["best_validation_loss"]
    train_points = [p for p in points if p["split"] == "train"]
    assert train_points[-1]["lm_loss"] == metrics["train_loss"] < train_points[0]["lm_loss"]
    routes = json.loads((finished_run / "token_routes.json").read_text())
    assert routes["sites"] == record["routing"]["sites"]
    assert all(len(s["tokens"]) == len(s["choice"]) == len(s["probability"]) for s in routes["sentences"])
    assert list((finished_run / "tensorboard").glob("events*"))
    for name in ("best", "last"):
        assert (finished_run / name / "tokenizer.json").is_file()
    assert not list(finished_run.rglob("training_args.bin"))


def test_the_summary_before_training_says_what_it_will_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, train={"max_steps": 1})
    assert train(recipe, tmp_path / "run") == 0
    summary = capsys.readouterr().out.split("step 1/1")[0]
    total = read_record(tmp_path / "run")["parameters"]["total"]
    for words in (f"parameters  {total:,}", "routed softmax", "per token forward", "by path", "GDN         backend",
                  "1 steps × 4 × 16 = 64 tokens", "memory      about", "fingerprint"):  # fmt: skip
        assert words in summary, words


def test_it_loads_with_transformers_and_generates(finished_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import layerroute  # noqa: F401  (registers the architecture)

    model = AutoModelForCausalLM.from_pretrained(finished_run / "best")
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "best")
    ids = tokenizer("The router", return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert out.shape[1] > ids.shape[1]


def test_a_completed_run_is_not_touched(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = finished_run.parent / "tiny.yaml"
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.name != ".lock"}
    assert train(recipe, finished_run) == 0
    assert "completed; nothing to do" in " ".join(capsys.readouterr().out.split())
    for more, told in (
        (
            ["--train.learning_rate", "0.5"],
            "another run (tiny-seed7): train.learning_rate is 0.003 there and 0.5 here",
        ),
        (["--seed", "8"], "another run"),
        (["--resume", "never"], "is not empty"),
        (["--resume", "nowhere"], "there is no checkpoint folder nowhere"),
    ):
        assert train(recipe, finished_run, *more) == 2
        assert told in capsys.readouterr().err
    assert before == {
        path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.name != ".lock"
    }


def test_divergence_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverge(self: Any, model: Any) -> Any:
        raise TrainingDiverged(
            "training loss", float("nan"), step=self.state.global_step + 1, checkpoint=None
        )

    recipe = write_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.RoutedTrainer, "_clip_grad_norm", diverge)
        assert train(recipe, tmp_path / "run") == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if line.startswith("layerroute: the training loss is nan at step 1")]
    assert "Traceback" not in "".join(errors)
    record = read_record(tmp_path / "run")
    assert record["status"] == "failed"
    assert "step 1" in record["error"]
    assert train(recipe, tmp_path / "run") == 0  # and it can be tried again


def test_a_loss_that_really_explodes_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, train={"learning_rate": 1e30, "max_gradient_norm": 1e30, "save_every": 0})
    assert train(recipe, tmp_path / "run") == 1
    assert "so the step was not taken" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trainer_module.RoutedTrainer._save_rng_state

    def fill_up(self: Any, output_dir: str) -> None:
        if output_dir.endswith("-10"):
            raise OSError(28, "No space left on device", output_dir)
        original(self, output_dir)

    recipe = write_recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.RoutedTrainer, "_save_rng_state", fill_up)
        assert train(recipe, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "checkpoint-5" in error
    assert read_record(tmp_path / "run")["status"] == "failed"
    assert train(recipe, tmp_path / "run") == 0
    assert train(recipe, tmp_path / "straight") == 0
    assert_same_run(tmp_path / "straight", tmp_path / "run")


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"data": {"sequence_length": 4096}}, "windows of 4096"),
        ({"train": {"batch_size": 5000}}, "smaller batch"),
        ({"model": {"vocab_size": 20}}, "model.vocab_size is 20"),
        ({"model": {"num_attention_heads": 5}}, "5 heads do not divide hidden_size 32"),
        ({"model": {"layer_pattern": ["routed", "gdn"]}}, "the first layer is routed"),
        ({"train": {"device": "cuda"}}, "finds no GPU"),
        ({"data": {"paths": ["nowhere.txt"]}}, "nowhere.txt"),
        ({"train": {"maxsteps": 3}}, "max_steps"),
        ({"train": {"max_steps": "many"}}, "train.max_steps"),
        ({"train": {"report_to": ["tensorbord"]}}, "Did you mean 'tensorboard'?"),
        ({"train": {"report_to": ["wandb"]}}, "'wandb' is not installed here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, Any],
    told: str,
) -> None:
    if told == "finds no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])
    recipe = write_recipe(tmp_path, **sections)
    assert train(recipe, tmp_path / "run") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("layerroute: error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert not (tmp_path / "run" / "record.json").exists()


def test_data_that_changed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    recipe = write_recipe(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        assert train(recipe, tmp_path / "run") == 143
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(corpus.read_text() + "\n\nOne more document about the router.")
    assert train(recipe, tmp_path / "run") == 2
    assert "begun on other data" in capsys.readouterr().err
