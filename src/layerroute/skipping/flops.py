"""Analytic forward FLOPs of a routed decoder, per token. A multiply-add is 2 FLOPs; training is about three times that.

Norms, activations, softmax and rotary embedding are left out. A whole layer's attention is counted over the full T x T
square, as the kernels' FLOPs are counted; attention of gathered tokens over the key prefixes that their blocks read.
Adapters are not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from layerroute.ops.routed_attention import share_of_keys
from layerroute.routing.routers import router_flops
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.skip_config import SkipConfig, layer_and_unit

_CHUNK = 64
"""Tokens that transformers' Gated DeltaNet takes at once."""

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


def layer_flops(config: Any, context_length: int, layer: int = 0) -> LayerFlops:
    """Of one layer, for a transformers configuration (its text part) of a described family.

    A layer with linear attention computes it for all tokens, skipping or not, and all of it counts as ``keys``.
    """
    size, heads = config.hidden_size, config.num_attention_heads
    mlp = _mlp_flops(config, layer)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] == "linear_attention":
        return LayerFlops(keys=_linear_flops(config, context_length), queries=0.0, scores=0.0, mlp=mlp)
    width = getattr(config, "head_dim", None) or size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    family = FAMILIES.get(config.model_type)
    gates = 1.0 if family is not None and family.gated else 0.0
    return LayerFlops(
        keys=4.0 * size * groups * width,
        queries=(4.0 + 2.0 * gates) * size * heads * width,
        scores=4.0 * context_length * heads * width,
        mlp=mlp,
    )


def _mlp_flops(config: Any, layer: int) -> float:
    """A gated MLP; of a layer with experts those that one token takes, what chooses them, and the shared one."""
    size, experts = config.hidden_size, getattr(config, "num_experts", None) or 0
    dense = getattr(config, "mlp_only_layers", None) or []
    sparse = experts and layer not in dense and (layer + 1) % getattr(config, "decoder_sparse_step", 1) == 0
    if not sparse:
        return 6.0 * size * config.intermediate_size
    taken = 6.0 * size * config.num_experts_per_tok * config.moe_intermediate_size
    shared = getattr(config, "shared_expert_intermediate_size", None) or 0
    return taken + 2.0 * size * experts + (6.0 * size * shared + 2.0 * size if shared else 0.0)


def _linear_flops(config: Any, context_length: int) -> float:
    """Gated DeltaNet as transformers computes it without kernels; its triangular solves are left out."""
    heads, key, value = (
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
    )
    keys, values = config.linear_num_key_heads * key, heads * value
    projections = 2.0 * config.hidden_size * (2 * keys + 3 * values + 2 * heads)
    convolution = 2.0 * config.linear_conv_kernel_dim * (2 * keys + values)
    chunks = -(-context_length // _CHUNK)
    rule = heads * (_CHUNK * (4.0 * key + 2.0 * value) + 6.0 * key * value)
    return projections + convolution + rule * chunks * _CHUNK / context_length


def skip_path_flops(skip: SkipConfig, hidden_size: int) -> float:
    """The skip path of one site, for one token."""
    return 0.0 if skip.skip_path == "identity" else 4.0 * hidden_size * skip.rank


def path_costs(config: Any, skip: SkipConfig, context_length: int = NOMINAL_CONTEXT) -> list[list[float]]:
    """(sites, 2) forward FLOPs of one token that skips, and of one that runs, at each site."""
    path = skip_path_flops(skip, config.hidden_size)
    costs = []
    for site in skip.sites():
        index, unit = layer_and_unit(site)
        layer = layer_flops(config, context_length, index)
        written = 0.0 if unit == "mlp" or skip.kv == "evict" else layer.keys
        costs.append([path + written, layer.of_unit(unit)])
    return costs


@dataclass(frozen=True, kw_only=True)
class SkipFlops:
    """Forward FLOPs per token of a routed model, over sequences of one length without a cache.

    Attributes:
        context_length: T.
        layers: the decoder layers, by part.
        output: the output layer.
        router: all routers.
        skip_path: one skip path.
        config: what is routed.
    """

    context_length: int
    layers: tuple[LayerFlops, ...]
    output: float
    router: float
    skip_path: float
    config: SkipConfig = field(repr=False)

    @property
    def layers_per_token(self) -> float:
        """All decoder layers before the router was added."""
        return sum(layer.total for layer in self.layers)

    @property
    def base_per_token(self) -> float:
        """The model before the router was added."""
        return self.layers_per_token + self.output

    @property
    def forward_per_token(self) -> float:
        """Masked execution: everything, router and skip paths too."""
        return self.base_per_token + self.router + self.skip_path * len(self.config.sites())

    def sparse_per_token(
        self, rate: Mapping[str, float] | Sequence[float], *, least: float = 0.0, evenly: bool = False
    ) -> float:
        """Sparse execution where the share ``rate`` of the tokens runs at each site (by name, or in their order).

        The tokens that run are taken to be spread evenly over the sequence.

        Args:
            rate: the shares.
            least: sites where a smaller share than this skips are computed in full, skip path and all
                (``profitability`` of ``execution: auto``).
            evenly: count attention of gathered tokens over the full square too, as a whole layer's is. So neither side
                is flattered where routing is compared with static pruning. By default as it is executed.
        """
        sites = self.config.sites()
        rates = dict(rate) if isinstance(rate, Mapping) else dict(zip(sites, rate, strict=True))
        saved = sum(self.saved(site, rates[site], least=least, evenly=evenly) for site in sites)
        return self.base_per_token + self.router - saved

    def saved(self, site: str, rate: float, *, least: float = 0.0, evenly: bool = False) -> float:
        """What one site saves against the whole unit; see `sparse_per_token`."""
        if rate >= 1.0:
            return 0.0
        if 1 - rate < least:
            return -self.skip_path
        index, unit = layer_and_unit(site)
        layer, saved = self.layers[index], 0.0
        if unit in ("block", "attention"):
            # With `project` every token writes keys, but where nobody runs nobody reads them.
            written = rate if self.config.kv == "evict" or rate == 0.0 else 1.0
            saved += (1 - written) * layer.keys + (1 - rate) * layer.queries
            saved += layer.scores * (1 - rate * self._share_of_keys(rate, evenly))
        if unit in ("block", "mlp"):
            saved += (1 - rate) * layer.mlp
        return saved - (1 - rate) * self.skip_path

    def _share_of_keys(self, rate: float, evenly: bool) -> float:
        """Keys that count for a gathered query, as a share of the sequence: those its block reads, or all there are."""
        there = rate if self.config.kv == "evict" else 1.0
        return there * (
            1.0 if evenly else share_of_keys(self.context_length * rate, self.context_length * there)
        )

    def to_dict(self) -> dict[str, Any]:
        """For result records."""
        return {
            "context_length": self.context_length,
            "forward_per_token": self.forward_per_token,
            "base_per_token": self.base_per_token,
            "by_part": {
                **{
                    f"layer {part.name}": sum(getattr(layer, part.name) for layer in self.layers)
                    for part in fields(LayerFlops)
                },
                "output": self.output,
                "router": self.router,
                "skip paths": self.skip_path * len(self.config.sites()),
            },
        }


def saved_by_skipping(config: Any, skip: SkipConfig, context_length: int) -> float:
    """Forward FLOPs per token that a site saves, on average, which no token runs, its skip path paid for."""
    flops, sites = skip_flops(config, skip, context_length), skip.sites()
    return sum(flops.saved(site, 0.0) for site in sites) / len(sites)


def routers_flops(skip: SkipConfig, hidden_size: int) -> float:
    """All routers, for one token (those that decide for whole sequences count as nothing)."""
    routing = skip.routing
    if routing.control is not None or skip.granularity not in ("token", "per_layer"):
        return 0.0
    routers = len(skip.layers or []) if skip.granularity == "per_layer" else 1
    read = hidden_size * (1 + skip.history)
    return router_flops(routing.router, read, len(skip.sites()), routing.widths, routers=routers)


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
        layers=tuple(layer_flops(text, context_length, index) for index in range(text.num_hidden_layers)),
        output=2.0 * text.hidden_size * text.vocab_size,
        router=routers_flops(skip, text.hidden_size),
        skip_path=skip_path_flops(skip, text.hidden_size),
        config=skip,
    )
