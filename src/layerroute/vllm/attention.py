"""Attention of some of a step's tokens, over a paged cache that all of them have written."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerroute.vllm.step import metadata_of

GAP = 8
"""Tokens that skip between two that run, up to which both are attended in one piece."""


def write_keys(attention: Any, key: Tensor, value: Tensor) -> None:
    """Put keys and values (N, G·K) of all tokens of the step into the layer's cache."""
    from vllm.model_executor.layers.attention.attention import unified_kv_cache_update

    unified_kv_cache_update(
        key.view(-1, attention.num_kv_heads, attention.head_size),
        value.view(-1, attention.num_kv_heads, attention.head_size_v),
        attention.layer_name,
    )


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """What M tokens attend to, after all N have written their keys.

    Args:
        attention: vLLM's attention layer.
        query: (M, H·K) of the tokens that run, rotated.
        key, value: (N, G·K) of all tokens of the step.
        index: (M,) which of the N they are, rising.

    Returns:
        (M, H·V).
    """
    if attention.attn_backend.get_name() != "CPU_ATTN":
        # Any other backend is asked about all tokens; answers to those that skip are dropped.
        whole = query.new_zeros(key.shape[0], query.shape[1])
        whole[index] = query
        attended: Tensor = attention(whole, key, value)[index]
        return attended
    write_keys(attention, key, value)
    whole_step = metadata_of(attention.layer_name)
    part, inside, size = pieces(whole_step, index)
    metadata = _planned(attention, part, query.dtype)
    asked = query
    if size != len(index):
        asked = query.new_zeros(size, query.shape[1])
        asked[inside] = query
    out = torch.empty(size, attention.num_heads * attention.head_size_v, dtype=query.dtype)
    attention.impl.forward(
        attention,
        asked.view(-1, attention.num_heads, attention.head_size),
        None,
        None,
        attention.kv_cache,
        metadata,
        out.view(-1, attention.num_heads, attention.head_size_v),
    )
    return out if size == len(index) else out[inside]


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


def _planned(attention: Any, metadata: Any, dtype: torch.dtype) -> Any:
    """The metadata with the CPU kernel's own plan for it."""
    from vllm import _custom_ops, envs

    plan = _custom_ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(metadata.seq_lens),
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_size,
        seq_lens=metadata.seq_lens,
        dtype=dtype,
        query_start_loc=metadata.query_start_loc,
        causal=metadata.causal,
        sliding_window_size=attention.impl.sliding_window,
        isa=attention.isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        dynamic_causal=None,
        kv_cache_dtype=attention.impl.kv_cache_dtype,
    )
    return replace(metadata, scheduler_metadata=plan)
