"""vLLM's decoder layer as its own CPU kernels compute it, without what its modules do around these.

On a CPU vLLM leaves the joining of small operators to compilation, and a routed model cannot be compiled as a whole:
what runs depends on its tokens. So the same is joined here by hand, with kernels that vLLM has. What modules look up at
each call is looked up once. Where a kernel does not fit, on another device or for another activation, the module is
called.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from vllm import _custom_ops as ops
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from layerroute.vllm.attention import PagedAttention

Map = Callable[[Tensor], Tensor]


class Kernels:
    """One of vLLM's decoder layers. Weights are whole: tensor parallelism and quantisation are refused.

    Args:
        layer: vLLM's, after its weights were loaded and packed.

    Attributes:
        enter: the norm of attention's input.
        between: that of the MLP's input.
        mlp: (N, D) through the gated MLP.
        size: G·K, of one token's keys.
    """

    def __init__(self, layer: Any) -> None:
        module: Any = layer.self_attn
        self.enter, self.between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.mlp = gated(layer.mlp)
        self.attention, self.size = PagedAttention(module.attn), module.kv_size
        self._sizes = [module.q_size, module.kv_size, module.kv_size]
        self._all, self._out = linear(module.qkv_proj), linear(module.o_proj)
        self._keys = linear(layer.kv_proj) if hasattr(layer, "kv_proj") else None
        self._rotated = rotary(module.rotary_emb)
        self._heads = [(getattr(module, name, None), module.head_dim) for name in ("q_norm", "k_norm")]

    def whole(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """What vLLM's layer does for tokens that all run."""
        states, h = self.enter.entered(hidden, residual)
        states, h = self.between.added(self.attend(positions, states), h)
        return self.mlp(states), h

    def attend(self, positions: Tensor, states: Tensor) -> Tensor:
        """(N, D) what attention adds, from the normed states of all tokens of the step."""
        return self._out(self.attention.of_all(*self._asked(positions, states)))

    def attend_some(self, positions: Tensor, states: Tensor, run: Tensor, skip: Tensor) -> Tensor:
        """(M, D) what it adds to the M tokens of ``run``, from the normed states of all; ``skip`` are the others."""
        query, *own = self._asked(positions[run], states.index_select(0, run))
        key = states.new_empty(len(states), self.size)
        value = torch.empty_like(key)
        others = self.keys_values(positions.index_select(0, skip), states.index_select(0, skip))
        for of_all, ran, other in zip((key, value), own, others, strict=True):
            of_all.index_copy_(0, run, ran).index_copy_(0, skip, other)
        return self._out(self.attention.of_some(query.contiguous(), key, value, run))

    def keys_values(self, positions: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """(N, G·K) keys, rotated, and (N, G·K) values, of tokens that skip."""
        assert self._keys is not None, "attention is skipped, so the layer has kv_proj"
        key, value = self._keys(states).split_with_sizes(self._sizes[1:], dim=-1)
        key, _ = self._rotated(positions, _headed(key, *self._heads[1]), None)
        return key, value

    def _asked(self, positions: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H·K) and keys (N, G·K), rotated, and values (N, G·K)."""
        query, key, value = self._all(states).split_with_sizes(self._sizes, dim=-1)
        of_query, of_key = self._heads
        query, key = self._rotated(positions, _headed(query, *of_query), _headed(key, *of_key))
        return query, key, value


class Norm:
    """An RMS norm of vLLM's."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._weight, self._epsilon = module.weight, module.variance_epsilon
        self._own = self._weight.device.type != "cpu" or module.variance_size_override is not None

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of x (N, D)."""
        if self._own:
            plain: Tensor = self.module(x)
            return plain
        out = torch.empty_like(x)
        ops.rms_norm(out, x, self._weight, self._epsilon)
        return out

    def added(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum; both are written in place."""
        if self._own:
            plain: tuple[Tensor, Tensor] = self.module(x, residual)
            return plain
        ops.fused_add_rms_norm(x, residual, self._weight, self._epsilon)
        return x, residual

    def entered(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The normed input of a part, and the stream h, which from here on is the layer's own."""
        return (self(hidden), hidden) if residual is None else self.added(hidden, residual)


def linear(module: Any) -> Map:
    """The product of one of vLLM's linear modules."""
    product = getattr(module, "cpu_linear", None)
    if product is None or module.skip_bias_add:
        return lambda x: found[0] if isinstance(found := module(x), tuple) else found
    weight, bias = module.weight, module.bias
    return lambda x: product(x, weight, bias)


def rotary(module: Any) -> Callable[..., tuple[Tensor, Any]]:
    """Rotates queries (N, H·K) and keys (N, G·K) or None, in place, given (N,) positions."""
    table = module.cos_sin_cache
    if table.device.type != "cpu" or type(module).forward_cpu is not RotaryEmbedding.forward_cpu:
        found: Callable[..., tuple[Tensor, Any]] = module.forward
        return found
    size, style, tables = module.head_size, module.is_neox_style, {table.dtype: table}

    def rotated(positions: Tensor, query: Tensor, key: Tensor | None) -> tuple[Tensor, Any]:
        if query.dtype not in tables:
            tables[query.dtype] = table.to(query.dtype)
        torch.ops._C.rotary_embedding(positions, query, key, size, tables[query.dtype], style)
        return query, key

    return rotated


def gated(module: Any) -> Map:
    """A gated MLP."""
    up, down = linear(module.gate_up_proj), linear(module.down_proj)
    if module.gate_up_proj.weight.device.type != "cpu" or type(module.act_fn) is not SiluAndMul:
        found: Map = module
        return found

    def through(x: Tensor) -> Tensor:
        gate, value = up(x).chunk(2, dim=-1)
        # Not vLLM's silu_and_mul: from 8 rows on it takes longer than these two (2,048 rows: 8.8 against 2.0 ms).
        return down(silu(gate).mul_(value))

    return through


def _headed(x: Tensor, norm: Any, width: int) -> Tensor:
    """Queries or keys (N, H·K), normed head by head in families that do so."""
    if norm is None:
        return x
    normed: Tensor = norm(x.unflatten(-1, (-1, width)).contiguous())
    return normed.flatten(-2)
