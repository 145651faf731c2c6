"""Analytic forward FLOPs of the hybrid model, per token and by path. ``FlopCounterMode`` is the witness in tests.

A multiply-add is 2 FLOPs; norms, activations, softmax and rotary embedding are left out (as in ``FlopCounterMode``).
Softmax attention is counted as the kernels run it, over the full T x T square and not the causal half, because that
is what an executed-FLOP counter sees; these are forward numbers, training is about three times as much.
"""

from dataclasses import dataclass, field

from layerroute.hybrid.hybrid_config import HybridConfig
from layerroute.ops.gated_delta import gated_delta_flops
from layerroute.ops.routed_attention import share_of_keys, window_keys
from layerroute.routing.routers import router_flops


@dataclass(frozen=True, kw_only=True)
class FlopsReport:
    """Forward FLOPs per token at one context length.

    Attributes:
        context_length: T of the sequence that the mean is taken over.
        forward_per_token: everything that masked execution computes: both paths of every routed layer.
        by_part: the same split into parts that add up to it.
        by_path: one routed layer's cost on each path (mixer, or block), without what both share.
        fixed_per_token: what every token pays whatever its choices.
    """

    context_length: int
    forward_per_token: float
    by_part: dict[str, float] = field(default_factory=dict)
    by_path: dict[str, float] = field(default_factory=dict)
    fixed_per_token: float = 0.0
    routed_layers: int = 0

    def at_rate(self, rate: float) -> float:
        """FLOPs per token if a share ``rate`` of the choices is softmax and only the chosen path is computed.

        An ideal: with ``full_context`` the paths' K/V and state updates cannot be skipped, and this leaves them out
        of the saving only for sparse execution's own count to show.
        """
        mixed = rate * self.by_path.get("softmax", 0.0) + (1 - rate) * self.by_path.get("gdn", 0.0)
        return self.fixed_per_token + self.routed_layers * mixed


def softmax_flops(config: HybridConfig, context_length: int, window: int | None = None) -> float:
    """One softmax mixer, per token; over a ``window`` only the keys that are read."""
    assert config.head_dim is not None and config.num_key_value_heads is not None
    inner, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    projections = 2 * config.hidden_size * (2 * inner + 2 * shared)
    keys = context_length if window is None else window_keys(context_length, window)
    return projections + 4 * keys * inner


def gdn_flops(config: HybridConfig, context_length: int) -> float:
    """One Gated DeltaNet mixer, per token, with the delta rule as the chunked backend computes it."""
    assert config.head_dim is not None
    heads, key, value = config.num_attention_heads, config.head_dim, config.gdn_value_dim
    projections = 2 * config.hidden_size * heads * (2 * key + 3 * value + 2)
    convolution = 2 * config.gdn_conv_size * heads * (2 * key + value)
    rule = gated_delta_flops(context_length, heads=heads, key_dim=key, value_dim=value) / context_length
    return projections + convolution + rule


def mlp_flops(config: HybridConfig) -> float:
    """One gated MLP, per token."""
    assert config.intermediate_size is not None
    return 6 * config.hidden_size * config.intermediate_size


def path_costs(config: HybridConfig, context_length: int = 1024) -> list[list[float]]:
    """(sites, paths) forward FLOPs of one token on each path, at a nominal context; per head for ``head`` choices."""
    block = mlp_flops(config) if config.routed_unit == "block" else 0.0
    costs = [gdn_flops(config, context_length) + block, softmax_flops(config, context_length) + block]
    if config.granularity == "head":
        costs = [cost / config.num_attention_heads for cost in costs]
    return [list(costs) for _ in config.sites]


def routers_flops(config: HybridConfig) -> float:
    """All routers, per token."""
    routing = config.routing_config
    if not config.routed_layers or routing.control is not None:
        return 0.0
    routers = 1 if config.router_mode == "parallel" else len(config.routed_layers)
    return router_flops(
        routing.router, config.hidden_size, len(config.sites), routing.widths, routers=routers
    )


def forward_flops(config: HybridConfig, context_length: int) -> FlopsReport:
    """Forward FLOPs per token over a sequence of ``context_length`` tokens, without a cache."""
    pattern = config.layer_pattern or []
    routed = len(config.routed_layers)
    softmax, gdn, mlp = (
        softmax_flops(config, context_length),
        gdn_flops(config, context_length),
        mlp_flops(config),
    )
    in_block = config.routed_unit == "block"
    parts = {
        "gdn": pattern.count("gdn") * gdn,
        "softmax": pattern.count("softmax") * softmax,
        "window": pattern.count("window") * softmax_flops(config, context_length, config.window),
        "routed gdn": routed * gdn,
        "routed softmax": routed * softmax,
        "mlp": (len(pattern) + (routed if in_block else 0)) * mlp,
        "router": routers_flops(config),
        "output": 2.0 * config.hidden_size * config.vocab_size,
    }
    total = sum(parts.values())
    block = mlp if in_block else 0.0
    by_path = {"gdn": gdn + block, "softmax": softmax + block}
    return FlopsReport(
        context_length=context_length,
        forward_per_token=total,
        by_part={name: value for name, value in parts.items() if value},
        by_path=by_path,
        fixed_per_token=total - routed * sum(by_path.values()),
        routed_layers=routed,
    )


def sparse_flops_per_token(config: HybridConfig, context_length: int, rate: float) -> float:
    """Forward FLOPs per token that sparse execution computes, without a cache.

    A share ``rate`` of the tokens takes softmax at every routed layer, spread evenly over the sequence.

    Raises:
        ValueError: for heads that choose apart, whose projections are computed for all tokens.
    """
    if config.granularity == "head":
        raise ValueError("sparse FLOPs are counted for tokens that choose, not for heads")
    assert config.head_dim is not None and config.num_key_value_heads is not None
    report = forward_flops(config, context_length)
    block = mlp_flops(config) if config.routed_unit == "block" else 0.0
    own = config.context == "own_context"
    inner, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    size = 2.0 * config.hidden_size
    softmax = 0.0
    if rate > 0:
        keys = rate if own else 1.0
        scores = 4 * context_length * inner * keys
        scores *= share_of_keys(context_length * rate, context_length * keys)
        softmax = size * 2 * shared * keys + rate * (size * 2 * inner + scores + block)
    gdn = 0.0
    if rate < 1:
        read = 1.0 - rate
        wide = size * 2 * config.num_attention_heads * config.gdn_value_dim
        if own:
            tokens = max(1, round(read * context_length))
            gdn = read * (gdn_flops(config, tokens) + block)
        else:
            gdn = gdn_flops(config, context_length) - (1 - read) * wide + read * block
    return report.fixed_per_token + report.routed_layers * (softmax + gdn)
