"""Models by name, for benchmarks: speed does not depend on the values of weights, so that they are drawn at random."""

import argparse
import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from layerroute.errors import UserError, nearest
from layerroute.skipping.devices import memory_free

_SIZES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_SIZES, sizes, strict=True))
    for name, sizes in {
        "smollm2-135m": ("llama", 49152, 576, 1536, 30, 9, 3, 64, True),
        "smollm2-1.7b": ("llama", 49152, 2048, 8192, 24, 32, 32, 64, True),
        "tinyllama-1.1b": ("llama", 32000, 2048, 5632, 22, 32, 4, 64, False),
        "qwen3-4b": ("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
        "qwen2.5-7b": ("qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
        "llama-3-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
        "llama-3.1-8b": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
        "tiny": ("llama", 128, 32, 64, 8, 4, 2, 8, True),
    }.items()
}
"""By the names that their makers gave them, in lower case."""

_TRAINED_FOR = re.compile(r"[-_](instruct|chat|base|it|hf)\b.*$")


def shape(word: str) -> str:
    """Type of an argument that names a model of ``SHAPES``, as people write it: ``meta-llama/Llama-3-8B-Instruct``."""

    def plain(name: str) -> str:
        name = _TRAINED_FOR.sub("", name.lower().rsplit("/", 1)[-1]).removeprefix("meta-")
        return re.sub(r"[^a-z0-9]", "", name)

    for name in SHAPES:
        if plain(name) == plain(word):
            return name
    raise argparse.ArgumentTypeError(
        f"{word!r} is no model that is known by name: {', '.join(SHAPES)}.{nearest(word, SHAPES)}"
    )


def config_of(name: str) -> PreTrainedConfig:
    """The configuration of a model of ``SHAPES``."""
    return AutoConfig.for_model(max_position_embeddings=32768, **SHAPES[name])


def random_model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of ``SHAPES`` in inference mode, its weights drawn where they are to lie: they are nowhere twice.

    Raises:
        UserError: they do not fit there.
    """
    config = config_of(name)
    free = memory_free(device)
    if free is not None:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        takes = sum(value.numel() for value in empty.parameters()) * dtype.itemsize
        if takes > free:
            half = "" if dtype.itemsize == 2 else "--dtype bf16 takes half of it, "
            raise UserError(
                f"{name}: its weights take {takes / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and "
                f"{free / 2**30:.1f} GiB are free on {device.type}; {half}smaller models less: {', '.join(SHAPES)}"
            )
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()
