"""Analytic forward FLOPs of a routed decoder, per token. A multiply-add is 2 FLOPs; training is about three times that.

Norms, activations, softmax and rotary embedding are left out. A whole layer's attention is counted over the full T x T
square, as the kernels' FLOPs are counted; attention of gathered tokens over the key prefixes that their blocks read.
Adapters are not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from layerroute.ops.routed_attention import share_of_keys
from layerroute.routing.routers import router_flops
from layerroute.skipping.skip_config import SkipConfig

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


@dataclass(frozen=True, kw_only=True)
class SkipFlops:
    """Forward FLOPs per token of a routed model, over sequences of one length without a cache.

    Attributes:
        context_length: T.
        layer: one decoder layer, by part.
        layers: number of decoder layers.
        output: the output layer.
        router: all routers.
        skip_path: one skip path.
        config: what is routed.
    """

    context_length: int
    layer: LayerFlops
    layers: int
    output: float
    router: float
    skip_path: float
    config: SkipConfig = field(repr=False)

    @property
    def base_per_token(self) -> float:
        """The model before the router was added."""
        return self.layers * self.layer.total + self.output

    @property
    def forward_per_token(self) -> float:
        """Masked execution: everything, router and skip paths too."""
        return self.base_per_token + self.router + self.skip_path * len(self.config.sites())

    def sparse_per_token(self, rate: Mapping[str, float] | Sequence[float]) -> float:
        """Sparse execution where the share ``rate`` of the tokens runs at each site (by name, or in their order).

        The tokens that run are taken to be spread evenly over the sequence.
        """
        sites = self.config.sites()
        rates = dict(rate) if isinstance(rate, Mapping) else dict(zip(sites, rate, strict=True))
        saved = sum(self.saved(site.split(".")[1], rates[site]) for site in sites)
        return self.base_per_token + self.router - saved

    def saved(self, unit: str, rate: float) -> float:
        """What one site saves against the whole unit."""
        if rate >= 1.0:
            return 0.0
        saved = 0.0
        if unit in ("block", "attention"):
            # With `project` every token writes keys, but where nobody runs nobody reads them.
            written = rate if self.config.kv == "evict" or rate == 0.0 else 1.0
            saved += (1 - written) * self.layer.keys + (1 - rate) * self.layer.queries
            saved += self.layer.scores * (1 - rate * self._share_of_keys(rate))
        if unit in ("block", "mlp"):
            saved += (1 - rate) * self.layer.mlp
        return saved - self.skip_path

    def _share_of_keys(self, rate: float) -> float:
        """Keys that a block of gathered queries reads, as a share of the sequence, on average."""
        length = self.context_length * (rate if self.config.kv == "evict" else 1.0)
        return length / self.context_length * share_of_keys(self.context_length * rate, length)

    def to_dict(self) -> dict[str, Any]:
        """For result records."""
        return {
            "context_length": self.context_length,
            "forward_per_token": self.forward_per_token,
            "base_per_token": self.base_per_token,
            "by_part": {
                **{f"layer {name}": self.layers * value for name, value in asdict(self.layer).items()},
                "output": self.output,
                "router": self.router,
                "skip paths": self.skip_path * len(self.config.sites()),
            },
        }


def saved_by_skipping(config: Any, skip: SkipConfig, context_length: int) -> float:
    """Forward FLOPs per token that a site saves which no token runs, its skip path paid for (see `skip_flops`)."""
    return skip_flops(config, skip, context_length).saved(skip.units[0], 0.0)


def routers_flops(skip: SkipConfig, hidden_size: int) -> float:
    """All routers, for one token (those that decide for whole sequences count as nothing)."""
    routing = skip.routing
    if routing.control is not None or skip.granularity not in ("token", "per_layer"):
        return 0.0
    routers = len(skip.layers or []) if skip.granularity == "per_layer" else 1
    return router_flops(routing.router, hidden_size, len(skip.sites()), routing.widths, routers=routers)


def skip_flops(config: Any, skip: SkipConfig, context_length: int) -> SkipFlops:
    """Of a routed model of a family with gated MLPs.

    Args:
        config: the model's transformers configuration.
        skip: the router's configuration (``get_router(model).config``).
        context_length: T.
    """
    text = config.get_text_config()
    return SkipFlops(
        context_length=context_length,
        layer=layer_flops(text, context_length),
        layers=text.num_hidden_layers,
        output=2.0 * text.hidden_size * text.vocab_size,
        router=routers_flops(skip, text.hidden_size),
        skip_path=skip_path_flops(skip, text.hidden_size),
        config=skip,
    )
