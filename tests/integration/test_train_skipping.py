"""`layerroute train` on layer-skipping recipes as users meet it: a tiny model, its own tokenizer, real runs."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from layerroute.cli.main import main
from layerroute.data.prepare import prepare_data
from layerroute.evaluation.loading import load_model
from layerroute.recipe import load_recipe
from layerroute.records import read_record
from layerroute.skipping import get_router
from layerroute.training.samples import model_inputs
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained

BASE = """
capability: layer_skipping
model: {{name: {model}}}
skip:
  layers: [2, 3, 4, 5]
  router_layer: 2
  sink_tokens: 1
  rank: 4
  granularity: token
  routing: {{router: linear, estimator: selected, budget: quantile, rate: 0.6}}
start: {{own_text: 0.0, tokens_statistics: 512, tokens_selection: 128, tokens_search: 128}}
data:
  source: files
  paths: [{train}]
  validation_paths: [{heldout}]
  sequence_length: 32
  cache_dir: {cache}
train:
  max_steps: 4
  batch_size: 2
  learning_rate: 1.0e-3
  precision: fp32
  log_every: 1
  save_every: 2
  evaluation_sequences: 8
  threshold_tokens: 512
  route_sentences: 0
  report_to: []
adapt: {{lora_rank: 2}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model folder, texts and a base recipe."""
    folder = tmp_path_factory.mktemp("skipping")
    write_documents(folder, {"train": 120, "heldout": 60}, length=60, sentence=f"{SENTENCE}.")
    write_pretrained(folder / "model", folder / "train.jsonl", vocab_size=300)
    paths = {name: folder / f"{name}.jsonl" for name in ("train", "heldout")}
    text = BASE.format(model=folder / "model", cache=folder / "cache", **paths)
    (folder / "base.yaml").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def cache(home, monkeypatch):
    monkeypatch.setenv("LAYERROUTE_CACHE", str(home / "cache"))


def recipe(home, name, text=""):
    file = home / f"{name}.yaml"
    file.write_text(f"base: base.yaml\n{text}")
    return str(file)


def train(home, out, name, text="", *more):
    assert main(["train", recipe(home, name, text), "--out", str(out), *more]) == 0
    return read_record(out)


def curve(out):
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def test_a_run_from_a_calibrated_start(home, tmp_path, capsys):
    out = tmp_path / "run"
    record = train(home, out, "token")
    routing = record["routing"]
    assert record["status"] == "completed" and routing["control"] is None
    assert len(record["validation"]["window_losses"]) == 8
    loss = sum(record["validation"]["window_losses"]) / 8
    assert loss == pytest.approx(record["metrics"]["validation_loss"], abs=1e-4)
    # The rate asked for is the rate served, in inference mode, on text that the thresholds were not set on.
    assert routing["skipped"] == pytest.approx(0.4, abs=0.06)
    assert record["flops"]["executed_per_token"] < record["flops"]["forward_per_token"]
    assert record["parameters"]["by_part"]["adapter"] > 0
    points = [point for point in curve(out) if point["split"] == "train"]
    assert {"lm_loss", "kd_loss", "activity"} <= points[0].keys() and len(points) == 4
    # What was saved is what was scored: opened again it has the same loss.
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == pytest.approx(record["metrics"]["best_validation_loss"], abs=1e-5)


CONTROLS = {
    "static_greedy": "start: {arm: static_greedy}",
    "random": "start: {arm: random}",
    "periodic": "start: {arm: periodic}",
    "early_exit": "start: {arm: early_exit}",
}


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_start_from_the_same_calibration_and_skip_as_much(home, tmp_path, name):
    record = train(home, tmp_path / name, name, CONTROLS[name])
    granted = 0.13 if name == "static_greedy" else 0.08  # two of four layers is the nearest to 40 %
    assert record["routing"]["skipped"] == pytest.approx(0.4, abs=granted)
    found = [path for path in (home / "cache" / "calibrations").iterdir() if path.is_dir()]
    assert len(found) == 1, "all arms share one calibration"


@pytest.mark.parametrize("start", ["{allocation: even}", "{allocation: cost}", "{arm: static_greedy}"])
def test_a_base_in_half_precision_is_calibrated(home, tmp_path, monkeypatch, start):
    """As on a GPU, where checkpoints keep their own precision."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    record = train(home, tmp_path / "run", "half", f"model: {{dtype: bfloat16}}\nstart: {start}")
    assert record["routing"]["skipped"] == pytest.approx(0.4, abs=0.13)


def test_static_layers_may_be_left_out_with_nothing_in_their_place(home, tmp_path, capsys, monkeypatch):
    """What any engine serves: the export is a plain model with fewer layers."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    plain = "skip: {skip_path: identity, sink_tokens: 0, sink_ids: []}\n"
    record = train(home, tmp_path / "run", "plain", f"{plain}start: {{arm: static_greedy}}")
    assert record["parameters"]["by_part"]["skip paths"] == 0
    assert main(["export", str(tmp_path / "run"), "--to", "hf", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 5)
    assert main(["train", recipe(home, "routed", plain), "--out", str(tmp_path / "routed")]) == 2
    assert "'identity' cannot be calibrated" in capsys.readouterr().err


PARTS = {"attention": ("keys", "queries", "scores"), "mlp": ("mlp",)}


@pytest.mark.parametrize("unit", PARTS)
def test_a_run_of_one_unit_starts_from_a_calibration_of_that_unit(home, tmp_path, capsys, monkeypatch, unit):
    """And so does a control of it; another unit's calibration is refused, and blocks do not find it in the cache."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    text = f"skip: {{unit: {unit}}}"
    record = train(home, tmp_path / "run", unit, text)
    routing = record["routing"]
    assert record["status"] == "completed" and routing["control"] is None
    assert routing["sites"] == [f"layer{layer}.{unit}" for layer in (2, 3, 4, 5)]
    assert routing["skipped"] == pytest.approx(0.4, abs=0.08) and 0 < min(routing["rate"].values()) < 1
    assert record["flops"]["executed_per_token"] < record["flops"]["forward_per_token"]
    parts = record["flops"]["by_part"]
    run = sum(parts[f"layer {part}"] for part in PARTS[unit]) / 7
    assert record["flops"]["by_path"]["run"] == pytest.approx(run)
    static = train(home, tmp_path / "static", unit, text + "\nstart: {arm: static_greedy}")
    assert static["routing"]["sites"] == routing["sites"] and static["routing"]["control"] == "static"
    folders = [path for path in (tmp_path / "cache" / "calibrations").iterdir() if path.is_dir()]
    assert len(folders) == 1, "both arms share one calibration"
    loaded = load_model(tmp_path / "run")
    assert get_router(loaded.model).config.unit == unit
    start = f"start: {{folder: {folders[0]}}}"
    assert main(["train", recipe(home, "other", start), "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"was calibrated with unit {unit}, and the recipe asks for skip.unit block" in error
    for key, value in {"granularity": "per_layer", "rank": 8, "sink_tokens": 2, "layers": [3, 4]}.items():
        other = f"skip: {{unit: {unit}, {key}: {value}}}\n{start}"
        assert main(["train", recipe(home, "other", other), "--out", str(tmp_path / "other")]) == 2
        assert f"asks for skip.{key} {value}" in capsys.readouterr().err


def test_a_router_that_is_to_hold_its_rate_holds_it(home, tmp_path):
    train(home, tmp_path / "run", "rate", "skip: {serve: rate}")
    assert get_router(load_model(tmp_path / "run").model).config.serve == "rate"


def test_early_exit_never_comes_back(home, tmp_path):
    train(home, tmp_path / "run", "early_exit", CONTROLS["early_exit"])
    loaded = load_model(tmp_path / "run")
    with torch.no_grad():
        loaded.model(input_ids=torch.randint(5, 250, (2, 32)))
    runs = get_router(loaded.model).last.expensive.long()
    assert (runs.diff(dim=-1) <= 0).all() and 0 < runs.float().mean() < 1


def test_full_depth_is_a_run_without_skips_and_stochastic_depth_only_trains_with_them(home, tmp_path):
    fresh = "skip: {skip_path: identity, routing: {control: static, budget: none, rate: 1.0}}\nstart: {method: fresh}"
    full = train(home, tmp_path / "full", "full", fresh)
    assert full["routing"]["skipped"] == 0.0
    dropped = (
        fresh.replace("static", "stochastic")
        .replace("1.0", "0.5")
        .replace("skip: {", "skip: {granularity: batch, ")
    )
    record = train(home, tmp_path / "stochastic", "stochastic", dropped)
    assert record["routing"]["skipped"] == 0.0
    rates = [
        value
        for p in curve(tmp_path / "stochastic")
        if p["split"] == "train"
        for k, value in p.items()
        if "rate/" in k
    ]
    assert 0.1 < sum(rates) / len(rates) < 0.9


FRESH = """
skip: {skip_path: identity, routing: {router: mlp, initial_bias: 1.0, estimator: gumbel_st, budget: none}}
start: {method: fresh}
adapt: {router_rate: 1.0}
"""


@pytest.mark.parametrize(
    ("name", "more", "terms"),
    [
        (
            "v2",
            "objective: {activity_weight: 5.0, budget_weight: 8.0}",
            {"kd_loss", "activity", "budget_loss"},
        ),
        ("no_kd", "objective: {kd_weight: 0.0, budget_weight: 8.0}", {"activity", "budget_loss"}),
        ("lagrangian", "objective: {lagrangian_step: 0.1}", {"kd_loss", "multiplier"}),
    ],
)
def test_fresh_routers_train_with_each_term_logged_apart(home, tmp_path, name, more, terms):
    record = train(home, tmp_path / "run", name, FRESH + more)
    points = [point for point in curve(tmp_path / "run") if point["split"] == "train"]
    assert all(terms <= point.keys() for point in points)
    assert ("kd_loss" in points[0]) == (name != "no_kd")
    assert record["routing"]["skipped"] == pytest.approx(0.4, abs=0.08)


def test_reinforce_decides_for_the_batch_and_says_that_it_is_not_causal(home, tmp_path):
    text = FRESH.replace("gumbel_st", "reinforce").replace("skip: {", "skip: {granularity: batch, ")
    text += (
        "objective: {kd_weight: 0.0, policy_weight: 1.0, activity_weight: 1.0}\ntrain: {threshold_tokens: 0}"
    )
    record = train(home, tmp_path / "run", "reinforce", text)
    points = [point for point in curve(tmp_path / "run") if point["split"] == "train"]
    assert all("policy_loss" in point for point in points)
    assert record["routing"]["causal"] is False


def test_one_checkpoint_serves_every_budget_that_it_was_trained_for(home, tmp_path):
    out = tmp_path / "run"
    text = "objective: {budgets: [0.25, 0.4, 0.6]}\ntrain: {threshold_tokens: 2048}"
    train(home, out, "budgets", text)
    loaded = load_model(out)
    router = get_router(loaded.model)
    ids = _heldout(home)
    shares = []
    for budget in (0.25, 0.4, 0.5, 0.6):
        router.set_budget(budget)
        with torch.no_grad():
            loaded.model(input_ids=ids)
        shares.append(1 - float(router.last.mean_rate()))
    assert shares == sorted(shares)
    assert shares == pytest.approx([0.25, 0.4, 0.5, 0.6], abs=0.05)


def _heldout(home):
    """The whole validation split; thresholds were set on a fifth of it."""
    config = replace(load_recipe(home / "base.yaml").data, tokenizer=str(home / "model"))
    validation = prepare_data(config).validation
    return torch.from_numpy(validation.batch(range(validation.windows())))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["token", "v2"])
def test_a_resumed_run_ends_bit_identical(home, tmp_path, name):
    text = "" if name == "token" else FRESH + "objective: {budget_weight: 8.0, lagrangian_step: 0.1}"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(home, whole, name, text)
    train(home, parts, name, text)
    # The run is put back to where its first checkpoint was written.
    (parts / "record.json").unlink()
    train(home, tmp_path / "again", name, text, "--resume", str(parts / "checkpoints" / "checkpoint-2"))
    for file in ("router.safetensors", "adapter/adapter_model.safetensors"):
        one, two = load_file(whole / "last" / file), load_file(tmp_path / "again" / "last" / file)
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), file


@pytest.mark.slow
def test_only_what_the_recipe_opens_is_trained(home, tmp_path):
    record = train(home, tmp_path / "skip", "skip_only", "adapt: {lora_rank: 0}")
    parts = record["parameters"]
    assert parts["by_part"]["adapter"] == 0 and parts["trainable"] == parts["by_part"]["skip paths"]
    record = train(home, tmp_path / "all", "all", "adapt: {lora_rank: 2, router_rate: 0.1}")
    parts = record["parameters"]
    assert parts["trainable"] == parts["total"] - parts["by_part"]["base"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "skip: {granularity: batch}",
            "skip.granularity 'batch' cannot be calibrated (only per_layer or token or sequence",
        ),
        ("skip: {layers: [2, 9]}", "out of range"),
        ("skip: {kv: evict}", "skip.kv 'evict' cannot be calibrated"),
        (
            "skip: {layers: [2, 9]}\nstart: {method: fresh}\nadapt: {router_rate: 1.0}",
            "out of range",
        ),
        (
            "train: {separate_documents: true}\nmodel: {attention: flash_attention_2}",
            "use model.attention: sdpa",
        ),
        ("model: {name: /no/such/model}", "/no/such/model"),
        ("skip: {routing: {rate: 0.0}}", "between 0 and 1"),
        ("data: {tokenizer: gpt2}", "leave data.tokenizer out"),
        ("data: {sequence_length: 100000}", "tokens are needed"),
        ("start: {folder: nowhere}", "nowhere"),
        ("adapt: {lora_targets: [nothing]}", "no module called nothing"),
        ("objective: {ce_weight: 0.0, kd_weight: 0.0}", "nothing to learn from"),
        ("adapt: {lora_rank: 0, skip_rate: 0.0}", "nothing is trained"),
        ("start: {method: fresh}\nobjective: {budgets: [0.2, 0.4]}", "serves several budgets"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(home, tmp_path, capsys, text, told):
    assert main(["train", recipe(home, "bad", text), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert told in error[-1] and "Traceback" not in "".join(error)


def test_sequences_longer_than_the_model_reads_are_told(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("layerroute.training.skipping.trainee.tokens_read", lambda model: 8)
    assert main(["train", recipe(home, "long", ""), "--out", str(tmp_path / "run")]) == 2
    assert "tokens are too long: this model reads 8" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "told", "long"),
    [
        ("start: {folder: nowhere}", "nowhere holds no calibrated routed", "prepare_data"),
        ("adapt: {lora_targets: [nothing]}", "no module called nothing", "start_router"),
    ],
)
def test_what_does_not_fit_is_told_before_what_takes_long(
    home, tmp_path, capsys, monkeypatch, text, told, long
):
    monkeypatch.setattr(
        f"layerroute.training.skipping.trainee.{long}", lambda *_, **__: pytest.fail("too late")
    )
    assert main(["train", recipe(home, "bad", text), "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err


def test_a_tokenizer_that_does_not_fit_is_told(home, tmp_path, capsys):
    folder = shutil.copytree(home / "model", tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(20)])
    tokenizer.save_pretrained(folder)
    file = recipe(home, "misfit", f"model: {{name: {folder}}}")
    assert main(["train", file, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "they do not fit" in error[-1] and "Traceback" not in "".join(error)
    data = ["--data", str(home / "train.jsonl"), "--length", "32"]
    assert main(["calibrate", str(folder), "--budget", "0.25", *data]) == 2
    assert "they do not fit" in capsys.readouterr().err


def test_a_family_without_a_description_is_not_trained(home, tmp_path, capsys):
    folder = tmp_path / "model"
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=7, n_head=4)).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(home / "model").save_pretrained(folder)
    file = recipe(home, "family", f"model: {{name: {folder}}}")
    assert main(["train", file, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "of the family 'gpt2'" in error[-1] and "llama" in error[-1]


def test_two_stages_train_router_and_skip_paths_first_and_the_adapter_then(home, tmp_path):
    text = "adapt: {lora_rank: 2, lora_begin: 0.5, router_rate: 0.5}"
    train(home, tmp_path / "run", "stages", text + "\ntrain: {max_steps: 8, save_every: 4}")
    first, last = (tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" for step in (4, 8))
    adapter = "adapter/adapter_model.safetensors"
    early, late = load_file(first / adapter), load_file(last / adapter)
    assert all(not value.any() for name, value in early.items() if "lora_B" in name)
    assert any(value.any() for name, value in late.items() if "lora_B" in name)
    router = load_file(first / "router.safetensors")
    calibrated = next((home / "cache" / "calibrations").glob("*/router.safetensors"))
    start = load_file(calibrated)
    moved = {name for name, value in router.items() if name in start and not torch.equal(value, start[name])}
    assert any("skip_paths" in name for name in moved) and any("router" in name for name in moved)


def test_packed_documents_are_trained_and_scored_apart(home, tmp_path, capsys):
    """No token of a window sees another document: a window's loss is that of its documents alone."""
    out = tmp_path / "run"
    text = "train: {separate_documents: true}\ndata: {sequence_length: 128}"
    record = train(home, out, "packed", text)
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["loss"] == pytest.approx(record["metrics"]["best_validation_loss"], abs=1e-5)
    loaded = load_model(out)
    config = replace(load_recipe(home / "base.yaml").data, tokenizer=str(home / "model"), sequence_length=128)
    validation = prepare_data(config).validation
    found = [
        (window, int(place))
        for window in range(validation.windows())
        for place in (validation.batch([window])[0] == validation.end_of_text).nonzero()[0][:1]
    ]
    window, end = next((window, place) for window, place in found if 20 < place < 90)
    batch = model_inputs(validation, [window], "position_ids")
    ids = batch["input_ids"]
    with torch.no_grad():
        packed = loaded.model(**batch, use_cache=False).logits[:, end + 1 :]
        alone = loaded.model(input_ids=ids[:, end + 1 :], use_cache=False).logits
        joined = loaded.model(input_ids=ids, use_cache=False).logits[:, end + 1 :]
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(joined, alone, rtol=1e-2, atol=1e-2)


def test_fresh_starts_anew_and_keeps_the_earlier_run(home, tmp_path, capsys):
    out = tmp_path / "run"
    earlier = train(home, out, "token")
    again = train(home, out, "token")
    assert again["started"] == earlier["started"]
    anew = train(home, out, "token", "", "--fresh")
    assert anew["started"] >= earlier["started"]  # to the second: a run this short may begin in the same one
    assert anew["metrics"]["validation_loss"] == earlier["metrics"]["validation_loss"]
    assert read_record(tmp_path / "run.earlier-1") == earlier
    capsys.readouterr()
    resume = ["--resume", str(out / "checkpoints" / "checkpoint-4")]
    assert main(["train", recipe(home, "token"), "--out", str(out), "--fresh", *resume]) == 2
    assert "--fresh starts again" in capsys.readouterr().err


def test_four_bits_without_bitsandbytes_is_told(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    file = recipe(home, "four_bits", "model: {quantization: nf4}")
    assert main(["train", file, "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'layerroute[quantization]'" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_and_report_hold_routing_against_its_controls(home, tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("token", "random", "periodic", "static_greedy"):
        text = CONTROLS.get(name, "train: {route_sentences: 4}")
        train(home, runs / name, name, text)
    capsys.readouterr()
    assert main(["compare", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = {arm["arm"]: arm["kind"] for arm in found["arms"]}
    assert kinds == {
        "token": "routed",
        "random": "random",
        "periodic": "periodic",
        "static_greedy": "static prune",
    }
    gap = next(arm for arm in found["arms"] if arm["arm"] == "random")["subject_minus_this"]
    assert gap["low"] <= gap["mean"] <= gap["high"] and gap["windows"] == 8
    assert main(["report", str(runs)]) == 0
    first = {p.name: p.read_bytes() for p in (runs / "report").rglob("*") if p.is_file()}
    assert {"index.html", "paper.md", "compute.csv", "layers.png"} <= first.keys()
    assert b"share of decisions for run by kind of token" in first["paper.md"].lower()
    assert main(["report", str(runs)]) == 0
    assert first == {p.name: p.read_bytes() for p in (runs / "report").rglob("*") if p.is_file()}


def test_a_run_on_a_mixture_is_scored_and_judged_by_kind(home, tmp_path, capsys):
    other = (
        "def run self return value for index in range import yield while with open as file lambda raise error"
    )
    write_documents(home, {"code": 120}, length=60, sentence=other)
    kinds = f"{{prose: {{paths: [{home / 'train.jsonl'}]}}, code: {{paths: [{home / 'code.jsonl'}], share: 2.0}}}}"
    text = (
        f"data: {{source: kinds, kinds: {kinds}, paths: [], validation_paths: []}}\ntrain: {{max_steps: 2}}\n"
    )
    out = tmp_path / "run"
    assert main(["train", recipe(home, "mixture", text), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["kinds"]) == ["prose", "code"]
    assert found["kinds"]["code"]["data"].startswith("text of files code.jsonl that the run did not train on")
    losses = [kind["loss"] for kind in found["kinds"].values()]
    assert found["mean"]["loss"] == pytest.approx(sum(losses) / 2)
    data = ["--data", f"prose={home / 'heldout.jsonl'}", "--length", "32", "--tokens-heldout", "256"]
    own = [word.replace("heldout.jsonl", "train.jsonl") for word in data]
    assert main(["transfer", str(out), *own, "--against", str(out)]) == 2
    assert "has seen this text" in capsys.readouterr().err
    assert main(["transfer", str(out), *data, "--against", str(out), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["home"] is True, "the run says what it was trained on"
    (arm,) = row["arms"].values()
    assert arm["at_equal_cost"]["mean"] == pytest.approx(0.0, abs=1e-6), (
        "against itself it neither wins nor loses"
    )
