"""Attention of all of a step's tokens, or of some, over a paged cache that all of them have written."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerroute.vllm.step import metadata_of, slots_of

GAP = 8
"""Tokens that skip between two that run, up to which both are attended in one piece."""


class PagedAttention:
    """One of vLLM's attention layers. On its CPU backend the kernels are called without the operators around them.

    Those are there for compilation, and take as long as the kernels where a step has few tokens.

    Args:
        layer: vLLM's.
    """

    def __init__(self, layer: Any) -> None:
        from vllm import _custom_ops  # here: pieces() can be tested without vLLM

        self.layer, self._ops = layer, _custom_ops
        self._on_cpu = layer.attn_backend.get_name() == "CPU_ATTN"
        self._cache: Tensor | None = None
        self._halves: tuple[Tensor, ...] = ()

    def write(self, key: Tensor, value: Tensor) -> None:
        """Put keys and values (N, G·K) of all tokens of the step into the layer's cache."""
        layer = self.layer
        key = key.view(-1, layer.num_kv_heads, layer.head_size)
        value = value.view(-1, layer.num_kv_heads, layer.head_size_v)
        if not self._on_cpu:
            from vllm.model_executor.layers.attention.attention import unified_kv_cache_update

            unified_kv_cache_update(key, value, layer.layer_name)
            return
        keys, values = self._bound()
        self._ops.cpu_attn_reshape_and_cache(
            key=key,
            value=value,
            key_cache=keys,
            value_cache=values,
            slot_mapping=slots_of(layer.layer_name),
            isa=layer.isa,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            kv_cache_dtype=layer.impl.kv_cache_dtype,
        )

    def of_all(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, H·V) what all tokens attend to, by (N, H·K) rotated queries, after all have written (N, G·K)."""
        if not self._on_cpu:
            attended: Tensor = self.layer(query, key, value)
            return attended
        self.write(key, value)
        return self._kernel(query, metadata_of(self.layer.layer_name))

    def of_some(self, query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> Tensor:
        """What M tokens attend to, after all N have written their keys.

        Args:
            query: (M, H·K) of the tokens that run, rotated.
            key, value: (N, G·K) of all tokens of the step.
            index: (M,) which of the N they are, rising.

        Returns:
            (M, H·V).
        """
        if not self._on_cpu:
            # Any other backend is asked about all tokens; answers to those that skip are dropped.
            whole = query.new_zeros(key.shape[0], query.shape[1])
            whole[index] = query
            attended: Tensor = self.layer(whole, key, value)[index]
            return attended
        self.write(key, value)
        part, inside, size = pieces(metadata_of(self.layer.layer_name), index)
        asked = query
        if size != len(index):
            asked = query.new_zeros(size, query.shape[1])
            asked[inside] = query
        out = self._kernel(asked, self._planned(part, query.dtype))
        return out if size == len(index) else out[inside]

    def _bound(self) -> tuple[Tensor, ...]:
        """Keys and values in the layer's cache, (blocks, G, tokens of a block, K) each."""
        cache: Tensor = self.layer.kv_cache
        if cache is not self._cache:
            blocks, heads, tokens, _ = cache.shape
            self._cache, self._halves = cache, cache.view(blocks, heads, 2 * tokens, -1).chunk(2, dim=2)
        return self._halves

    def _kernel(self, query: Tensor, metadata: Any) -> Tensor:
        """(M, H·V) what the M tokens of ``metadata`` attend to in the cache."""
        layer, impl = self.layer, self.layer.impl
        keys, values = self._bound()
        out = query.new_empty(len(query), layer.num_heads, layer.head_size_v)
        self._ops.cpu_attention_with_kv_cache(  # all by name: another order in a later vLLM is an error then
            query=query.view(-1, layer.num_heads, layer.head_size),
            key_cache=keys,
            value_cache=values,
            output=out,
            query_start_loc=metadata.query_start_loc,
            seq_lens=metadata.seq_lens,
            scale=impl.scale,
            causal=metadata.causal,
            alibi_slopes=impl.alibi_slopes,
            sliding_window=impl.sliding_window,
            block_table=metadata.block_table,
            softcap=impl.logits_soft_cap,
            scheduler_metadata=metadata.scheduler_metadata,
            s_aux=impl.sinks,
            dynamic_causal=metadata.dynamic_causal,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            kv_cache_dtype=impl.kv_cache_dtype,
        )
        return out.flatten(1)

    def _planned(self, metadata: Any, dtype: torch.dtype) -> Any:
        """The metadata with the CPU kernel's own plan for it."""
        from vllm import envs

        layer, impl = self.layer, self.layer.impl
        plan = self._ops.cpu_attn_get_scheduler_metadata(
            num_reqs=len(metadata.seq_lens),
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_dim=layer.head_size,
            seq_lens=metadata.seq_lens,
            dtype=dtype,
            query_start_loc=metadata.query_start_loc,
            causal=metadata.causal,
            sliding_window_size=impl.sliding_window,
            isa=layer.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=impl.kv_cache_dtype,
        )
        return replace(metadata, scheduler_metadata=plan)


def pieces(metadata: Any, index: Tensor, gap: int = GAP) -> tuple[Any, Tensor, int]:
    """A step's metadata as if each piece of neighbouring tokens were a request of its own.

    A piece ends where the request ends, or where more than ``gap`` tokens skip. It sees what its last token sees, and
    the causal mask, which is aligned to the end, does the rest.

    Args:
        metadata: of the whole step.
        index: (M,) the tokens that run, rising.
        gap: see there.

    Returns:
        The metadata; where each of the M tokens is among the tokens of all pieces; and how many those are.
    """
    tokens, starts = index.numpy(), metadata.query_start_loc.numpy()
    request = np.searchsorted(starts, tokens, side="right") - 1
    begins = np.ones(len(tokens), dtype=bool)
    begins[1:] = (np.diff(tokens) > gap + 1) | (np.diff(request) > 0)
    at = np.flatnonzero(begins)
    first, last, request = tokens[at], tokens[np.append(at[1:], len(tokens)) - 1], request[at]
    bounds = np.append(0, np.cumsum(last - first + 1))
    sees = metadata.seq_lens.numpy()[request] - (starts[request + 1] - 1 - last)
    piece = np.cumsum(begins) - 1
    inside, total = torch.from_numpy(bounds[piece] + tokens - first[piece]), int(bounds[-1])
    part = replace(
        metadata,
        num_actual_tokens=total,
        max_query_len=int((last - first).max()) + 1,
        query_start_loc=torch.from_numpy(bounds.astype(starts.dtype)),
        max_seq_len=int(sees.max()),
        seq_lens=torch.from_numpy(sees).to(metadata.seq_lens.dtype),
        block_table=metadata.block_table[torch.from_numpy(request)],
    )
    return part, inside, total
