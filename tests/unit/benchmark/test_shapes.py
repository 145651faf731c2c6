"""Models by name: as people write it, of their makers' sizes, and refused where they do not fit."""

import argparse

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerroute.benchmark import shapes
from layerroute.benchmark.memory import peak_memory
from layerroute.benchmark.shapes import SHAPES, config_of, random_model, shape
from layerroute.cli.main import main

PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen3-4b": 4_022_468_096,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
}
"""As the model cards say."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_they_are_as_large_as_their_makers_say(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    assert sum(value.numel() for value in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *((name, name) for name in SHAPES),
        ("Llama-3-8B", "llama-3-8b"),
        ("llama3-8b", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("qwen3_4b", "qwen3-4b"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("HuggingFaceTB/SmolLM2-1.7B", "smollm2-1.7b"),
    ],
)
def test_names_as_people_write_them(written, meant):
    assert shape(written) == meant


@pytest.mark.parametrize("written", ["llama-8b", "", "qwen2.5", "smollm2"])
def test_a_name_that_may_mean_several_means_none(written):
    with pytest.raises(argparse.ArgumentTypeError, match="known by name"):
        shape(written)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_nowhere_twice(dtype, monkeypatch):
    monkeypatch.setattr(shapes, "memory_free", lambda device: None)  # sizes are asked of an empty model
    peak, model = peak_memory(lambda: random_model("tiny", dtype, torch.device("cpu")), torch.device("cpu"))
    weights = sum(value.numel() for value in model.parameters()) * dtype.itemsize
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert weights <= peak < 1.5 * weights


def test_what_does_not_fit_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(shapes, "memory_free", lambda device: 10 * 2**30)
    assert main(["bench", "decode", "--model", "llama-3-8b"]) == 2
    told = capsys.readouterr().err
    assert "llama-3-8b: its weights take 29.9 GiB in float32, and 10.0 GiB are free on cpu" in told
    assert "--dtype bf16 takes half" in told and told.count("\n") == 1
