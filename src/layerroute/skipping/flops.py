"""Analytic forward FLOPs of a routed decoder, per token. A multiply-add is 2 FLOPs.

Norms, activations, softmax and rotary embedding are left out, and attention is counted over the full T x T square,
as ``FlopCounterMode`` sees it. Routers and skip paths are counted.
"""

from dataclasses import dataclass
from typing import Any

from layerroute.skipping.configuration import SkipConfig

NOMINAL_CONTEXT = 1024
"""Context length at which the relative costs of decisions are taken."""


@dataclass(frozen=True, kw_only=True)
class LayerFlops:
    """One decoder layer's forward FLOPs for one token, by part.

    Attributes:
        keys: key and value projections.
        queries: query and output projections.
        scores: attention over the context.
        mlp: the MLP.
    """

    keys: float
    queries: float
    scores: float
    mlp: float

    @property
    def attention(self) -> float:
        """All of attention."""
        return self.keys + self.queries + self.scores

    @property
    def total(self) -> float:
        """All of the layer."""
        return self.attention + self.mlp

    def of_unit(self, unit: str) -> float:
        """What a token pays for running a unit."""
        return {"block": self.total, "attention": self.attention, "mlp": self.mlp}[unit]


def layer_flops(config: Any, context_length: int) -> LayerFlops:
    """For a transformers configuration (its text part) of a family with gated MLPs."""
    size, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return LayerFlops(
        keys=4.0 * size * groups * width,
        queries=4.0 * size * heads * width,
        scores=4.0 * context_length * heads * width,
        mlp=6.0 * size * config.intermediate_size,
    )


def skip_path_flops(skip: SkipConfig, hidden_size: int) -> float:
    """The skip path of one site, for one token."""
    return 0.0 if skip.skip_path == "identity" else 4.0 * hidden_size * skip.rank


def path_costs(config: Any, skip: SkipConfig, context_length: int = NOMINAL_CONTEXT) -> list[list[float]]:
    """(sites, 2) forward FLOPs of one token that skips, and of one that runs, at each site."""
    layer = layer_flops(config, context_length)
    keys = layer.keys if skip.kv == "project" else 0.0
    path = skip_path_flops(skip, config.hidden_size)
    by_unit = {unit: [path + (0.0 if unit == "mlp" else keys), layer.of_unit(unit)] for unit in skip.units}
    return [list(by_unit[site.split(".")[1]]) for site in skip.sites()]
