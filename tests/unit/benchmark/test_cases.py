"""The shipped cases, at sizes of a moment, through the command line."""

import json
from pathlib import Path

import pytest
import torch

from layerroute.benchmark import gated_delta as case
from layerroute.benchmark import runner, train
from layerroute.benchmark.train import plain_model
from layerroute.cli.main import main
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.recipe import load_recipe
from layerroute.routing import forced
from layerroute.training.hybrid import build_model, model_config

SMALL = ["bench", "gated-delta", "--sizes", "2x40x2x8", "--repeats", "3"]

STATIC = """\
name: static
capability: attention_routing
model: {hidden_size: 32, num_attention_heads: 2, layer_pattern: [gdn, gdn, softmax]}
data: {vocabulary_size: 300, sequence_length: 24}
train: {batch_size: 4, gradient_accumulation: 2, precision: fp32, device: cpu}
"""
DYNAMIC = """\
base: static.yaml
name: dynamic
model: {layer_pattern: [gdn, routed, softmax]}
objective: {balance_weight: 0.01, budget_weight: 0.1}
"""


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.yaml" for name in ("static", "dynamic")}
    paths["static"].write_text(STATIC)
    paths["dynamic"].write_text(DYNAMIC)
    return paths


def command(recipes: dict[str, Path], *more: str) -> list[str]:
    chosen = ["--static", str(recipes["static"]), "--routed", str(recipes["dynamic"])]
    return ["bench", "train", *chosen, "--repeats", "3", *more]


def test_gated_delta_prints_its_record_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "record.json"
    assert main([*SMALL, "--json", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == record
    assert record["command"].startswith("layerroute bench gated-delta --sizes 2x40x2x8")
    forward, both = record["rows"]
    assert (forward["pass"], both["pass"]) == ("forward", "forward+backward")
    assert set(both["arms"]) == {"layerroute", "transformers", "recurrent"}
    assert len(both["gate"]) == 13 and all(c["deviation"] <= c["tolerance"] for c in both["gate"])


def test_gated_delta_leaves_the_recurrence_out_where_it_is_too_slow() -> None:
    assert main([*SMALL, "--recurrent-up-to", "39", "--passes", "forward"]) == 0


def test_a_wrong_result_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*tensors: torch.Tensor, backend: str, **options: object) -> object:
        output, state = honest(*tensors, backend=backend, **options)
        return (output * 1.01 if backend == "chunked" else output), state

    honest = case.gated_delta_rule
    monkeypatch.setattr(case, "gated_delta_rule", broken)
    out = tmp_path / "record.json"
    assert main([*SMALL, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and not out.exists()
    assert captured.err.count("\n") == 1
    assert "the equality gate is red: 2x40x2x8 forward: " in captured.err
    assert "nothing was timed" in captured.err


def test_train_measures_both_models(recipes: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(recipes, "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["baseline"] == "static" and row["tokens"] == 4 * 24
    assert {name: arm["execution"] for name, arm in row["arms"].items()} == {
        "static": "plain",
        "dynamic": "masked",
    }
    static, dynamic = row["arms"]["static"], row["arms"]["dynamic"]
    assert dynamic["parameters"] > static["parameters"]
    assert dynamic["forward_flops_per_token"] > static["forward_flops_per_token"]
    assert dynamic["layer_pattern"] == "gdn routed softmax"
    assert {check["what"].split(" of ")[0] for check in row["gate"]} == {"logits", "gradients"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "masked"),
        ({"routing": {"estimator": "selected"}}, "auto"),
        ({"routing": {"estimator": "selected"}, "execution": "masked"}, "masked"),
        ({"routing": {"estimator": "selected"}, "granularity": "head", "context": "own_context"}, "masked"),
    ],
)
def test_train_tells_how_a_step_is_executed(changes: dict, expected: str) -> None:
    config = train.HybridConfig(vocab_size=30, hidden_size=32, num_attention_heads=2, **changes)
    assert train._execution(config) == expected


def test_a_training_step_trains(recipes: dict[str, Path]) -> None:
    prepared = prepare(recipes)
    step = prepared.arms["dynamic"]
    before = [parameter.detach().clone() for parameter in step.model.parameters()]
    step()
    moved = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True)]
    assert all(moved), "every parameter takes part"
    assert step.model.training


def prepare(recipes: dict[str, Path]) -> train.Prepared:
    class Options:
        static, routed = str(recipes["static"]), [str(recipes["dynamic"])]
        batch_size = sequence_length = precision = None

    (comparison,) = train.comparisons(Options)
    return comparison.prepare()


def test_train_gate_sees_a_routed_model_that_is_not_the_plain_one(
    recipes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(recipes)
    assert all(check.green for check in prepared.gate())
    model = prepared.arms["dynamic"].model
    layer = model.model.layers[1]
    monkeypatch.setattr(layer, "_normalize", lambda path, output: 1.05 * output)
    red = [check.what for check in prepared.gate() if not check.green]
    assert len(red) == 4, "logits and gradients of both paths"


@pytest.mark.parametrize(("routing", "rate"), [("{rate: 0.25}", 0.25), ("null", 0.5)])
def test_a_step_trains_at_the_rate_of_its_recipe(
    recipes: dict[str, Path], routing: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipes["dynamic"], {"model.routing": routing})
    step = train.TrainingStep(
        recipe,
        build_model(model_config(recipe.model, 300), seed=1),
        [torch.randint(300, (4, 24))],
        "fp32",
    )
    asked: list[float] = []
    loss = step.loss

    def seen(*given: object, rate: float) -> object:
        asked.append(rate)
        return loss(*given, rate=rate)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "loss", seen)
    step()
    assert asked == [rate, rate], "one for each micro-batch"


@pytest.mark.parametrize("path", ["gdn", "softmax"])
@pytest.mark.parametrize("unit", ["mixer", "block"])
def test_the_plain_model_has_the_weights_of_one_path(unit: str, path: str) -> None:
    config = HybridConfig(hidden_size=32, num_attention_heads=2, vocab_size=50, routed_unit=unit)
    routed = HybridForCausalLM(config).eval()
    plain = plain_model(routed, path)
    assert plain.config.layer_pattern == ["gdn", path, path, "softmax"]
    ids = torch.randint(50, (2, 12))
    with torch.no_grad(), forced(routed, ("gdn", "softmax").index(path)):
        torch.testing.assert_close(plain(ids).logits, routed(ids).logits)


@pytest.mark.parametrize("unit", ["mixer", "block"])
@pytest.mark.parametrize("setting", [{"normalize_paths": True}, {"serve": "rate"}])
def test_a_model_that_normalizes_or_holds_its_rate_passes_the_gate(
    recipes: dict[str, Path], setting: dict, unit: str
) -> None:
    model = {"layer_pattern": ["gdn", "routed", "softmax"], "routed_unit": unit, **setting}
    recipes["dynamic"].write_text(f"base: static.yaml\nname: dynamic\nmodel: {json.dumps(model)}\n")
    prepared = prepare(recipes)
    routed = prepared.arms["dynamic"].model
    if "normalize_paths" in setting:
        for norm in routed.model.layers[1].path_norms.values():
            torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    checks = list(prepared.gate())
    assert len(checks) == 4 and all(check.green for check in checks)


def test_a_run_that_was_cut_off_is_gone_on_with_by_adding_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerroute import records

    source = records.provenance() | {"dirty": False}
    monkeypatch.setattr(records, "provenance", lambda: source)
    monkeypatch.setattr(runner, "provenance", lambda: source)
    out = tmp_path / "record.json"
    assert main([*SMALL, "--out", str(out)]) == 0
    first = json.loads(out.read_text())
    for _ in range(2):
        assert main([*SMALL, "--out", str(out), "--resume"]) == 0
        assert json.loads(out.read_text())["rows"] == first["rows"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gated-delta", "--sizes", "4x10"], "'4x10' is not rows x tokens x heads x width"),
        (["gated-delta", "--sizes", "4x0x1x8"], "all above 0"),
        (["gated-delta", "--passes", "forwards"], "choose from 'forward', 'forward+backward'"),
        (["gated-delta", "--repeats", "2"], "at least 3"),
        (["gated-delta", "--threads", "0"], "at least 1"),
        (["gated-delta", "--out", "record.txt"], ".json"),
        (["gated-delta", "--repeat", "9"], "--repeat"),
        (["gated-deltas"], "Did you mean 'gated-delta'?"),
        (["train", "--static", "nowhere.yaml"], "no recipe nowhere.yaml"),
        (["prefill", "--skip", "1.5"], "not a share between 0 and 1"),
        (["prefill", "--model", "smollm2-136m"], "Did you mean 'smollm2-135m'?"),
        (["decode", "--shape", "llama-4-8b"], "is no model that is known by name: smollm2-135m, "),
        (["prefill", "--sizes", "512"], "not rows x tokens"),
        (["decode", "--new-tokens", "0"], "at least 1"),
        (["decode", "--cache", "static", "--kv", "evict"], "use --kv project"),
        (["prefill", "--figure", "x.jpg"], ".svg"),
        (["attention", "--sizes", "4x10"], "rows x tokens x heads x width"),
        (["attention", "--rates", "0"], "a share above 0"),
        (["attention", "--passes", "forwards"], "choose from 'forward', 'forward+backward'"),
        (["hybrid", "--hidden-size", "100"], "not a multiple of 64"),
        (["peers", "--figure", "x.png"], "no speed-up by share to draw"),
        (["calibrate", "--figure", "x.png"], "no speed-up by share to draw"),
        (["calibrate", "--model", "hybrid", "--kv", "evict"], "for models that skip layers"),
        (["calibrate", "--model", "hybrid", "--shape", "tiny"], "for models that skip layers"),
        ([], "CASE"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_train_says_which_recipes_do_not_fit(
    recipes: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command({**recipes, "dynamic": recipes["static"]})) == 2
    assert "two recipes are named 'static'" in capsys.readouterr().err
    recipes["dynamic"].write_text("base: static.yaml\nname: other\n")
    assert main(command(recipes)) == 2
    assert "none of the recipes has a routed layer" in capsys.readouterr().err
    assert main(command(recipes, "--batch-size", "0")) == 2
