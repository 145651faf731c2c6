"""Carrying out a decoder layer's routes on vLLM's own modules.

State goes from layer to layer as vLLM has it: what the last part added, and the residual stream before (None at first);
their sum is the layer's input h. What nobody runs is not computed, but for keys and values.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm import _custom_ops as ops
from vllm.model_executor.layers.linear import ReplicatedLinear

from layerroute.skipping.skip_config import SkipConfig
from layerroute.skipping.skip_paths import SKIP_PATH_MODULES, LowRankSkip
from layerroute.vllm.attention import attend, write_keys
from layerroute.vllm.step import SiteRun

State = tuple[Tensor, Tensor | None]

PLANNING = 1 << 21
"""Bytes of keys and values that are read in the time that it takes to plan attention for a part of a step."""


def stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream h. vLLM's norms write in place: it is not to be held while they run."""
    return hidden if residual is None else hidden + residual


def normed(norm: Any, x: Tensor) -> Tensor:
    """RMS norm of x (N, D) by vLLM's own kernel, in place of which it runs seven operators on a CPU."""
    if x.device.type != "cpu" or norm.variance_size_override is not None:
        plain: Tensor = norm(x)
        return plain
    out = torch.empty_like(x)
    ops.rms_norm(out, x, norm.weight, norm.variance_epsilon)
    return out


def added(norm: Any, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and the sum; both are written in place."""
    if x.device.type != "cpu" or norm.variance_size_override is not None:
        plain: tuple[Tensor, Tensor] = norm(x, residual)
        return plain
    ops.fused_add_rms_norm(x, residual, norm.weight, norm.variance_epsilon)
    return x, residual


def entered(norm: Any, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The normed input of attention, and the stream h, which from here on is the layer's own."""
    return (normed(norm, hidden), hidden) if residual is None else added(norm, hidden, residual)


def whole(layer: Any, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> State:
    """What vLLM's layer does for tokens that all run, with its faster norms.

    Where nobody skips in the whole step, the layer itself is called: then a routed model is vLLM's, bit for bit.
    """
    states, h = entered(layer.input_layernorm, hidden, residual)
    states = layer.self_attn(positions=positions, hidden_states=states)
    states, h = added(layer.post_attention_layernorm, states, h)
    return layer.mlp(states), h


class FoldedSkip(nn.Module):
    """A skip path on vLLM's own linear modules, whose products are tuned to few tokens.

    Args:
        hidden_size: D.
        config: names the path, and its rank.
    """

    def __init__(self, hidden_size: int, config: SkipConfig) -> None:
        super().__init__()
        self.inner, rank = SKIP_PATH_MODULES[config.skip_path].inner, config.rank
        options: dict[str, Any] = {"bias": True, "return_bias": False}
        self.down = ReplicatedLinear(hidden_size, rank, **options)
        self.up = ReplicatedLinear(rank, hidden_size, **options)

    @torch.no_grad()
    def fill(self, path: LowRankSkip) -> None:
        """Take the path's maps; (h - mean) A is h A - mean A, whose last part does not depend on tokens."""
        self.down.weight.copy_(path.down.T)
        self.down.bias.copy_(-(path.mean @ path.down))
        self.up.weight.copy_(path.up.T)
        self.up.bias.copy_(path.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The update of tokens that skip."""
        inside = self.down(hidden)
        update: Tensor = self.up(inside if self.inner is None else self.inner(inside))
        return update


class RoutedLayer:
    """One of vLLM's decoder layers with sites.

    It gives the layer modules of its own: ``kv_proj``, which makes keys and values alone, of the local share of heads,
    where attention may be skipped; and ``skips``, skip paths by unit.

    Args:
        layer: vLLM's.
        config: of the router.
    """

    def __init__(self, layer: Any, config: SkipConfig) -> None:
        self.layer, self.attention = layer, layer.self_attn
        size = self.attention.qkv_proj.input_size
        if {"block", "attention"} & set(config.units):
            bias = self.attention.qkv_proj.bias is not None
            layer.kv_proj = ReplicatedLinear(size, 2 * self.attention.kv_size, bias=bias, return_bias=False)
        self.skips: Any = nn.ModuleDict()
        if config.skip_path != "identity":
            self.skips.update({unit: FoldedSkip(size, config) for unit in config.units})
        layer.skips = self.skips

    @torch.no_grad()
    def fill(self, paths: dict[str, LowRankSkip | None]) -> list[str]:
        """Take skip paths, and keys and values from the layer's joint projection; names what has been filled."""
        for unit, path in paths.items():
            if path is not None:
                self.skips[unit].fill(path)
        if hasattr(self.layer, "kv_proj"):
            whole, start = self.attention.qkv_proj, self.attention.q_size
            self.layer.kv_proj.weight.copy_(whole.weight[start:])
            if whole.bias is not None:
                self.layer.kv_proj.bias.copy_(whole.bias[start:])
        return [name for name, _ in self.layer.named_parameters() if name.startswith(("kv_proj.", "skips."))]

    def __call__(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, routes: dict[str, SiteRun]
    ) -> State:
        """The layer's output; ``routes`` by unit, of units that not all tokens run."""
        if "block" in routes:
            return self._block(positions, hidden, residual, routes["block"])
        hidden, residual = self._attention(positions, hidden, residual, routes.get("attention"))
        return self._mlp(hidden, residual, routes.get("mlp"))

    def _skipped(self, unit: str, h: Tensor) -> Tensor:
        """(M, D) what skipping adds to tokens."""
        out: Tensor = self.skips[unit](h) if unit in self.skips else torch.zeros_like(h)
        return out

    def _nobody(self, unit: str, h: Tensor) -> State:
        """State after a site that no token runs, from the stream before it."""
        return (self.skips[unit](h), h) if unit in self.skips else (h, None)

    def _block(self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun) -> State:
        states, h = entered(self.layer.input_layernorm, hidden, residual)
        if not route.count:
            write_keys(self.attention.attn, *self._keys_values(positions, states))
            return self._nobody("block", h)
        run, skip = route.indices
        kept = h.index_select(0, skip)
        whole = not route.sparse or self._keys_are_few(route)
        if whole:
            attended = self.attention(positions=positions, hidden_states=states)
        if route.sparse:
            attended = attended.index_select(0, run) if whole else self._attended(positions, states, route)
            ran, before = added(self.layer.post_attention_layernorm, attended, h.index_select(0, run))
            h.index_copy_(0, run, before)
            out = torch.empty_like(h).index_copy_(0, run, self.layer.mlp(ran))
        else:
            ran, h = added(self.layer.post_attention_layernorm, attended, h)
            h.index_copy_(0, skip, kept)
            out = self.layer.mlp(ran)
        return out.index_copy_(0, skip, self._skipped("block", kept)), h

    def _attention(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun | None
    ) -> State:
        states, h = entered(self.layer.input_layernorm, hidden, residual)
        if route is None:
            return self.attention(positions=positions, hidden_states=states), h
        if not route.count:
            write_keys(self.attention.attn, *self._keys_values(positions, states))
            return self._nobody("attention", h)
        run, skip = route.indices
        if route.sparse and not self._keys_are_few(route):
            out = torch.empty_like(h).index_copy_(0, run, self._attended(positions, states, route))
        else:
            out = self.attention(positions=positions, hidden_states=states)
        return out.index_copy_(0, skip, self._skipped("attention", h.index_select(0, skip))), h

    def _mlp(self, hidden: Tensor, residual: Tensor | None, route: SiteRun | None) -> State:
        if route is not None and not route.count:
            return (
                self._nobody("mlp", stream(hidden, residual)) if "mlp" in self.skips else (hidden, residual)
            )
        if residual is None:  # nobody ran this layer's attention
            residual, hidden = hidden, torch.zeros_like(hidden)
        if route is not None and route.sparse:
            h = hidden + residual
            run = route.indices[0]
            ran = self.layer.mlp(normed(self.layer.post_attention_layernorm, h.index_select(0, run)))
            out = torch.empty_like(h).index_copy_(0, run, ran)
        else:
            hidden, h = added(self.layer.post_attention_layernorm, hidden, residual)
            out = self.layer.mlp(hidden)
        if route is not None:
            skip = route.indices[1]
            out.index_copy_(0, skip, self._skipped("mlp", h.index_select(0, skip)))
        return out, h

    # Attention of some tokens; keys and values of all

    def _keys_are_few(self, route: SiteRun) -> bool:
        """Whether attending for tokens that skip, too, costs less than to plan attention for the others alone."""
        size = 2 * self.attention.kv_size * self.layer.input_layernorm.weight.element_size()
        return route.context is not None and route.context * size < PLANNING

    def _attended(self, positions: Tensor, states: Tensor, route: SiteRun) -> Tensor:
        """(M, D) what attention adds to the tokens that run, from the normed states of all."""
        attention, (run, skip) = self.attention, route.indices
        qkv, _ = attention.qkv_proj(states.index_select(0, run))
        query, own_key, own_value = qkv.split(
            [attention.q_size, attention.kv_size, attention.kv_size], dim=-1
        )
        query = self._normed("q_norm", query)
        query, own_key = attention.rotary_emb(positions[run], query, self._normed("k_norm", own_key))
        key = states.new_empty(len(states), attention.kv_size)
        value = torch.empty_like(key)
        skipped = self._keys_values(positions.index_select(0, skip), states.index_select(0, skip))
        for whole, ran, other in zip((key, value), (own_key, own_value), skipped, strict=True):
            whole.index_copy_(0, run, ran).index_copy_(0, skip, other)
        attended = attend(attention.attn, query.contiguous(), key, value, run)
        out, _ = attention.o_proj(attended)
        return out

    def _keys_values(self, positions: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """(N, G·K) keys, rotated, and values, of tokens that skip."""
        key, value = self.layer.kv_proj(states).chunk(2, dim=-1)
        key, _ = self.attention.rotary_emb(positions, self._normed("k_norm", key).contiguous(), None)
        return key, value.contiguous()

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm = getattr(self.attention, name, None)
        if norm is None:
            return x.contiguous()
        return norm(x.unflatten(-1, (-1, self.attention.head_dim)).contiguous()).flatten(-2)
