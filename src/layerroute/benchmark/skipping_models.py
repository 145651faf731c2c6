"""Models that the layer-skipping cases compare: plain, routed, with layers removed. All share their weights."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from layerroute.skipping import SkipConfig, add_router, get_router
from layerroute.skipping.families import decoder_stack

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "tie_word_embeddings"),
)
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_SIZES, sizes, strict=True))
    for name, sizes in {
        "smollm2-135m": (49152, 576, 1536, 30, 9, 3, True),
        "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, False),
        "tiny": (128, 32, 64, 8, 4, 2, True),
    }.items()
}
"""Llamas by name: speed does not depend on the values of weights, so that they are drawn at random."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Models that share their parameters.

    Attributes:
        plain: as transformers made it.
        routed: the same with a router.
    """

    plain: PreTrainedModel
    routed: PreTrainedModel

    @property
    def sites(self) -> int:
        """Routed sites."""
        return len(get_router(self.routed).sites)

    @property
    def layers(self) -> nn.ModuleList:
        """Of the plain model."""
        return decoder_stack(self.plain)[1]

    @property
    def routed_layers(self) -> list[int]:
        """Layers that may be skipped."""
        return list(get_router(self.routed).config.layers or [])


def build_models(shape: str, skip: SkipConfig, dtype: torch.dtype, device: torch.device, seed: int) -> Models:
    """Draw a model's weights and add a router to its double."""
    config = AutoConfig.for_model("llama", max_position_embeddings=32768, **SHAPES[shape])
    torch.manual_seed(seed)
    with torch.device(device):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    routed = add_router(double(plain), skip).eval()
    get_router(routed).to(device)
    return Models(plain=plain, routed=routed)


def double(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the parameters."""
    shared = {id(value): value for value in model.parameters()}
    return copy.deepcopy(model, shared)


def without_layers(plain: PreTrainedModel, removed: set[int]) -> PreTrainedModel:
    """The structural limit: a double of the model that does not have these layers."""
    shorter = double(plain)
    stack, layers = decoder_stack(shorter)
    kept = nn.ModuleList(layer for index, layer in enumerate(layers) if index not in removed)
    name = next(name for name, child in stack.named_children() if child is layers)
    setattr(stack, name, kept)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010
    text = shorter.config.get_text_config()
    text.num_hidden_layers = len(kept)
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        text.layer_types = [kind for index, kind in enumerate(kinds) if index not in removed]
    return shorter


def spread_out(layers: list[int], count: int) -> set[int]:
    """``count`` of the layers, evenly among them."""
    step = len(layers) / count
    return {layers[int((index + 0.5) * step)] for index in range(count)}


def draw(rows: int, positions: int, sites: int, skip: float, seed: int) -> Int[Tensor, "B S R"]:
    """Choices (0 skip, 1 run) at random, of which exactly the share ``skip`` (to one choice a row) skips."""
    total = positions * sites
    generator = torch.Generator().manual_seed(seed)
    rank = torch.rand(rows, total, generator=generator).argsort(dim=1).argsort(dim=1)
    return (rank >= round(skip * total)).long().view(rows, positions, sites)
