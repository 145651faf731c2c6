"""A base in four bits (QLoRA): gradients, FLOPs, a run and what is made of it. Skipped without bitsandbytes."""

import json

import pytest
import torch
from peft import LoraConfig

from layerroute.cli.main import main
from layerroute.evaluation.compute import count_executed
from layerroute.evaluation.loading import load_model
from layerroute.precision import choose_device
from layerroute.records import read_record
from layerroute.skipping import SkipConfig, add_router, get_router, load_pretrained, router_disabled
from layerroute.skipping.pretrained import base_options
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained

pytest.importorskip("bitsandbytes")

RECIPE = """
capability: layer_skipping
model: {{name: {folder}/model, quantization: nf4}}
skip: {{layers: [2, 3, 4, 5], router_layer: 2, rank: 4, sink_tokens: 1, routing: {{rate: 0.6, {routing}}}}}
start: {{method: {start}, tokens_statistics: 512, tokens_selection: 128, tokens_search: 128}}
adapt: {{lora_rank: 2, router_rate: 1.0}}
data:
  source: files
  paths: [{folder}/train.jsonl]
  validation_paths: [{folder}/heldout.jsonl]
  sequence_length: 32
  cache_dir: {folder}/cache
train:
  max_steps: 4
  batch_size: 4
  gradient_accumulation: 2
  gradient_checkpointing: true
  evaluate_every: 2
  evaluation_sequences: 8
  threshold_tokens: 512
  route_sentences: 0
  report_to: []
  precision: fp32
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with a tokenizer of its own, and text."""
    folder = tmp_path_factory.mktemp("four-bits")
    write_documents(folder, {"train": 120, "heldout": 60}, length=60, sentence=f"{SENTENCE}.")
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128}
    write_pretrained(folder / "model", folder / "train.jsonl", **sizes)
    return folder


def quantized(folder):
    options = base_options(device=choose_device("auto"), quantization="nf4")
    return load_pretrained(str(folder / "model"), **options)[0]


def test_gradients_pass_also_after_an_evaluation(folder):
    """On CPUs bitsandbytes would go over to a kernel without gradient once a model has been in inference mode."""
    found = []
    for evaluated in (False, True):
        model = quantized(folder)
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        ids = torch.arange(5, 25, device=model.device).view(1, -1)
        if evaluated:
            with torch.no_grad():
                model.eval()(input_ids=ids)
        model.train()(input_ids=ids, labels=ids).loss.backward()
        found.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )
    first = next(name for name in found[0] if ".layers.0." in name and "lora_B" in name)
    assert found[0][first].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])


def test_products_of_four_bits_are_counted(folder):
    model = add_router(quantized(folder), SkipConfig(layers=[2, 3, 4, 5], router_layer=2, rank=4))
    batches = [{"input_ids": torch.arange(5, 37).view(1, -1)}]
    with router_disabled(model):
        counted = count_executed(model, batches)
    assert counted["full_depth_per_token"] is not None
    assert counted["executed_per_token"] == pytest.approx(counted["full_depth_per_token"], rel=0.02)
    get_router(model).execution = "sparse"
    assert count_executed(model, batches)["executed_per_token"] != counted["executed_per_token"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "routing"),
    [
        ("fresh", "router: mlp, estimator: gumbel_st, budget: none"),
        ("calibrated", "router: linear, estimator: selected, budget: quantile"),
    ],
)
def test_a_run_is_opened_on_four_bits_again(folder, tmp_path, capsys, monkeypatch, start, routing):
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / f"{start}.yaml"
    file.write_text(RECIPE.format(folder=folder, start=start, routing=routing))
    assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 0
    record = read_record(tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["loss"] == pytest.approx(record["metrics"]["best_validation_loss"], abs=1e-4)
    model = load_model(tmp_path / "run").model
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert main(["generate", str(tmp_path / "run"), "the router", "--max-new-tokens", "4"]) == 0
