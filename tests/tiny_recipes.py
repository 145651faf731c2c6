"""Shipped recipes made tiny: small are the model, the text and the number of steps; all else is the recipe's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layerroute.recipe import Recipe
from layerroute.studies.plan import Plan
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained


def write_home(folder: Path, **config: Any) -> Path:
    """A tiny model with its tokenizer, and three texts."""
    write_documents(folder, {"train": 120, "heldout": 60, "more": 90}, length=60, sentence=f"{SENTENCE}.")
    write_pretrained(folder / "model", folder / "train.jsonl", **config)
    return folder


def small(home: Path, recipe: Recipe) -> dict[str, Any]:
    """What makes a recipe tiny, by dotted key; ``home`` is a folder of `write_home`."""
    train = recipe.train
    changes: dict[str, Any] = {
        "train.max_steps": 2,
        "train.batch_size": 2,
        "train.gradient_accumulation": min(2, train.gradient_accumulation),
        "train.log_every": 1,
        "train.evaluation_sequences": 4,
        "train.evaluation_batch_size": 2,
        "train.threshold_tokens": min(128, train.threshold_tokens),
        "train.route_sentences": min(2, train.route_sentences),
        "train.device": "cpu",
    }
    if recipe.data.source != "recall":
        text = {"paths": [str(home / "train.jsonl")], "validation_paths": [str(home / "heldout.jsonl")]}
        other = ("dataset", "subset", "revision", "max_documents", "max_characters")
        changes |= {f"data.{key}": None for key in other} | {"data.sequence_length": 32}
        if recipe.data.source == "kinds":
            kinds = {"one": {"paths": text["paths"]}, "two": {"paths": [str(home / "more.jsonl")]}}
            changes |= {"data.kinds": kinds}
        else:
            changes |= {"data.source": "files"} | {f"data.{key}": value for key, value in text.items()}
    if recipe.data.copies is not None:
        changes |= {"data.copies": {"length": 2, "beyond": 4}}
    if recipe.capability == "layer_skipping":
        tokens = {"tokens_statistics": 512, "tokens_selection": 128, "tokens_search": 128}
        changes |= {f"start.{key}": value for key, value in tokens.items()}
        changes |= {"model.name": str(home / "model"), "skip.rank": 4, "adapt.lora_rank": 2}
    elif recipe.data.source == "recall":  # small as they are, but for sequences of 16 times their length
        changes |= {"data.recall.evaluation_multiples": [1, 2]}
    else:
        changes |= {"model.hidden_size": 32, "model.num_attention_heads": 2}
        changes |= {"data.tokenizer": "bpe", "data.vocabulary_size": 300}
    return changes


def small_in_all(home: Path, plan: Plan) -> dict[str, Any]:
    """What makes all arms of a study tiny."""
    each = [small(home, plan.recipe(arm, plan.config.seeds[0], {})) for arm in plan.variants]
    return {key: value for key, value in each[0].items() if all(one.get(key) == value for one in each)}


def words(changes: Mapping[str, Any]) -> Iterator[str]:
    """As options of the command line."""
    return (f"--{key}={json.dumps(value)}" for key, value in changes.items())
