"""A corpus, a recipe and a model small enough that a whole training run takes a second."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

TEXT = "the a router layer token path learns reads writes fast slow cheap text code model and then quickly"

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "capability": "attention_routing",
    "seed": 7,
    "model": {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "layer_pattern": ["gdn", "routed", "routed", "softmax"],
    },
    "data": {
        "source": "files",
        "document_separator": "\n\n",
        "vocabulary_size": 300,
        "sequence_length": 16,
        "validation_share": 0.2,
    },
    "train": {
        "max_steps": 20,
        "batch_size": 4,
        "learning_rate": 3.0e-3,
        "log_every": 3,
        "evaluate_every": 5,
        "save_every": 5,
        "evaluation_sequences": 6,
        "evaluation_batch_size": 4,
        "threshold_tokens": 512,
        "precision": "fp32",
        "device": "cpu",
        "report_to": [],
    },
    "objective": {"balance_weight": 0.01},
}


def write_corpus(path: Path, documents: int = 60) -> Path:
    """Write sentences of a few words, one document a paragraph."""
    draw = random.Random(0)
    texts = [
        " ".join(" ".join(draw.choices(TEXT.split(), k=9)).capitalize() + "." for _ in range(4))
        for _ in range(documents)
    ]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with ``over`` on top, section by section."""
    merged = dict(under)
    for key, value in over.items():
        merged[key] = merge(merged.get(key) or {}, value) if isinstance(value, Mapping) else value
    return merged


def write_recipe(folder: Path, **sections: Any) -> Path:
    """Write corpus and recipe into ``folder``; ``sections`` are laid over ``RECIPE``. The cache lies there too."""
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        write_corpus(corpus)
    data = {"paths": [str(corpus)], "cache_dir": str(folder / "cache")}
    content = merge(merge(RECIPE, {"data": data}), sections)
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def figures_of(model: Mapping[str, Any], *, vocabulary_size: int, context_length: int) -> Any:
    """The figures of a recipe's `model` section, without memory for weights."""
    import torch

    from layerroute.hybrid import HybridForCausalLM, forward_flops, parameters_by_part
    from layerroute.training.hybrid import model_config

    config = model_config(model, vocabulary_size)
    with torch.device("meta"):
        parameters = parameters_by_part(HybridForCausalLM(config))
    flops = forward_flops(config, context_length)
    return SimpleNamespace(parameters=parameters, total=sum(parameters.values()), flops=flops)
