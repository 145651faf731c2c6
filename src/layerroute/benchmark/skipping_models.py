"""Models that the layer-skipping cases compare: plain, routed, with layers removed. All share their weights."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerroute.benchmark.shapes import random_model
from layerroute.exporting.export import drop_layers
from layerroute.skipping import SkipConfig, add_router, get_router
from layerroute.skipping.families import decoder_stack


@dataclass(frozen=True, kw_only=True)
class Models:
    """A model as transformers made it, and the same with a router; they share their parameters."""

    plain: PreTrainedModel
    routed: PreTrainedModel

    @property
    def sites(self) -> int:
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
    torch.manual_seed(seed)
    plain = random_model(shape, dtype, device)
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
    drop_layers(shorter, sorted(removed))
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
