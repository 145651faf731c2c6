"""A pretrained model as users have one, but tiny: a folder with a Llama and a tokenizer trained on its own text."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCE = "the router reads a state and decides which tokens run and which skip this layer of our model"
END = "<eos>"
# Large weights, so that every layer matters to the logits; no end, so that generation is as long as it is asked to be.
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": None,
}


def write_documents(folder: Path, counts: Mapping[str, int], length: int, sentence: str = SENTENCE) -> None:
    """Write ``NAME.jsonl`` with ``counts[NAME]`` documents of ``length`` words drawn from ``sentence``."""
    draw = random.Random(0)
    words = sentence.split()
    for name, count in counts.items():
        lines = [json.dumps({"text": " ".join(draw.choices(words, k=length))}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))


def write_tokenizer(folder: Path, text: Path, *, pads: bool = False) -> PreTrainedTokenizerFast:
    """Train 290 tokens on ``text``, the first of them ``END``, and save them; ``pads``: ``END`` is padding, too."""
    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=290, special_tokens=[END])
    special = {"eos_token": END} | ({"pad_token": END} if pads else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_pretrained(folder: Path, text: Path, *, pads: bool = False, **config: Any) -> Path:
    """Write a Llama of random weights with its tokenizer (see `write_tokenizer`); ``config`` is laid over ``LLAMA``."""
    tokenizer = write_tokenizer(folder, text, pads=pads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{"vocab_size": len(tokenizer)} | LLAMA | config))
    model.save_pretrained(folder)
    return folder
