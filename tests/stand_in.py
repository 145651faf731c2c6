"""A tiny model in the place of SmolLM2-135M: what is documented with that name runs in seconds, without a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_pretrained import write_pretrained

TEXT = "the router reads a state of a token and decides which layers run, def return import class self None"


def write_stand_in(folder: Path) -> Path:
    """A Llama of 12 layers of random weights, whose tokenizer knows prose and code a little."""
    text = folder / "text.jsonl"
    text.write_text("\n".join([json.dumps({"text": TEXT})] * 20))
    return write_pretrained(folder / "stand-in", text, num_hidden_layers=12)


def stand_in_for_smollm2(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Let ``smollm2-135m`` mean the model of a folder."""
    monkeypatch.setattr("layerroute.skipping.pretrained._smollm2", lambda: str(model))
