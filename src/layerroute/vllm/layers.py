"""Carrying out a decoder layer's routes on vLLM's own modules.

State goes from layer to layer as vLLM has it: what the last part added, and the residual stream before (None at first);
their sum is the layer's input h. What nobody runs is not computed, but for keys and values.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.linear import ReplicatedLinear

from layerroute.skipping.skip_paths import LowRankSkip
from layerroute.vllm.attention import attend, write_keys
from layerroute.vllm.step import SiteRun

State = tuple[Tensor, Tensor | None]


def stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream h. vLLM's norms write in place: it is not to be held while they run."""
    return hidden if residual is None else hidden + residual


class FoldedSkip:
    """A low-rank skip path in the model's dtype, with what does not depend on tokens computed once."""

    def __init__(self, path: LowRankSkip, dtype: torch.dtype) -> None:
        shift = -(path.mean @ path.down)
        self.down, self.shift, self.up, self.bias = (
            value.detach().to(dtype)
            for value in (path.down.T.contiguous(), shift, path.up.T.contiguous(), path.bias)
        )

    def __call__(self, hidden: Tensor) -> Tensor:
        """The update of tokens that skip."""
        return F.linear(F.linear(hidden, self.down, self.shift), self.up, self.bias)


class RoutedLayer:
    """One of vLLM's decoder layers with sites.

    Args:
        layer: vLLM's. A layer whose attention may be skipped gets a module for keys and values alone, ``kv_proj``.
        skips: by unit, its skip path; None is the identity.
    """

    def __init__(self, layer: Any, skips: dict[str, FoldedSkip | None]) -> None:
        self.layer, self.attention, self.skips = layer, layer.self_attn, skips

    def __call__(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, routes: dict[str, SiteRun]
    ) -> State:
        """The layer's output; ``routes`` by unit, of units that not all tokens run."""
        if "block" in routes:
            return self._block(positions, hidden, residual, routes["block"])
        hidden, residual = self._attention(positions, hidden, residual, routes.get("attention"))
        return self._mlp(hidden, residual, routes.get("mlp"))

    def _skipping(self, unit: str, h: Tensor, route: SiteRun) -> Tensor:
        """(N, D) what skipping adds, where somebody skips; the rest is to be filled in."""
        path = self.skips[unit]
        if path is None:
            return torch.zeros_like(h)
        if not route.count:
            return path(h)
        out = torch.empty_like(h)
        skip = route.indices[1]
        out[skip] = path(h[skip])
        return out

    def _block(self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun) -> State:
        if not route.count:
            h = stream(hidden, residual)
            self._write_keys(positions, h)
            return (
                (hidden, residual) if self.skips["block"] is None else (self._skipping("block", h, route), h)
            )
        if not route.sparse:
            h = stream(hidden, residual).clone()
            ran, before = self.layer(positions, hidden, residual)
            return _select(route, ran, self._skipping("block", h, route)), _select(route, before, h)
        h = stream(hidden, residual)
        run = route.indices[0]
        attended = self._attended(positions, h, route)
        ran, before = self.layer.post_attention_layernorm(attended, h[run])
        ran = self.layer.mlp(ran)
        out = self._skipping("block", h, route)
        out[run] = ran
        h = h.clone() if residual is None else h
        h[run] = before
        return out, h

    def _attention(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun | None
    ) -> State:
        if route is None or (route.count and not route.sparse):
            if residual is None:
                residual = hidden
                hidden = self.layer.input_layernorm(hidden)
            else:
                hidden, residual = self.layer.input_layernorm(hidden, residual)
            hidden = self.attention(positions=positions, hidden_states=hidden)
            if route is not None:
                hidden = _select(route, hidden, self._skipping("attention", residual, route))
            return hidden, residual
        h = stream(hidden, residual)
        if not route.count:
            self._write_keys(positions, h)
            return (
                (hidden, residual)
                if self.skips["attention"] is None
                else (self._skipping("attention", h, route), h)
            )
        attended = self._attended(positions, h, route)
        out = self._skipping("attention", h, route)
        out[route.indices[0]] = attended
        return out, h

    def _mlp(self, hidden: Tensor, residual: Tensor | None, route: SiteRun | None) -> State:
        if residual is None:  # attention was skipped in the very first layer
            residual, hidden = hidden, torch.zeros_like(hidden)
        if route is None or (route.count and not route.sparse):
            hidden, residual = self.layer.post_attention_layernorm(hidden, residual)
            ran = self.layer.mlp(hidden)
            if route is not None:
                ran = _select(route, ran, self._skipping("mlp", residual, route))
            return ran, residual
        if not route.count and self.skips["mlp"] is None:
            return hidden, residual
        h = hidden + residual
        out = self._skipping("mlp", h, route)
        if route.count:
            run = route.indices[0]
            out[run] = self.layer.mlp(self.layer.post_attention_layernorm(h[run]))
        return out, h

    # Attention of some tokens; keys and values of all

    def _attended(self, positions: Tensor, h: Tensor, route: SiteRun) -> Tensor:
        """(M, D) what attention adds to the tokens that run."""
        attention, (run, skip) = self.attention, route.indices
        states = self.layer.input_layernorm(h)
        qkv, _ = attention.qkv_proj(states[run])
        query, own_key, own_value = qkv.split(
            [attention.q_size, attention.kv_size, attention.kv_size], dim=-1
        )
        query = self._normed("q_norm", query)
        query, own_key = attention.rotary_emb(positions[run], query, self._normed("k_norm", own_key))
        key = torch.empty(len(h), attention.kv_size, dtype=h.dtype, device=h.device)
        value = torch.empty_like(key)
        key[run], value[run] = own_key, own_value
        key[skip], value[skip] = self._keys_values(positions[skip], states[skip])
        attended = attend(attention.attn, query.contiguous(), key, value, run)
        out, _ = attention.o_proj(attended)
        return out

    def _write_keys(self, positions: Tensor, h: Tensor) -> None:
        write_keys(self.attention.attn, *self._keys_values(positions, self.layer.input_layernorm(h)))

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


def _select(route: SiteRun, ran: Tensor, skipped: Tensor) -> Tensor:
    return torch.where(route.run.unsqueeze(-1), ran, skipped)


def add_key_projection(layer: Any) -> None:
    """Give vLLM's layer a module that makes keys and values alone, of the local share of heads."""
    attention = layer.self_attn
    bias = attention.qkv_proj.bias is not None
    layer.kv_proj = ReplicatedLinear(
        attention.qkv_proj.input_size, 2 * attention.kv_size, bias=bias, return_bias=False, params_dtype=None
    )


@torch.no_grad()
def fill_key_projection(layer: Any) -> None:
    """Copy its weights from the layer's joint projection, which keeps them for tokens that run."""
    whole, start = layer.self_attn.qkv_proj, layer.self_attn.q_size
    layer.kv_proj.weight.copy_(whole.weight[start:])
    if whole.bias is not None:
        layer.kv_proj.bias.copy_(whole.bias[start:])
