"""Routed attention in PyTorch: blocks of gathered queries against the stretch of keys that they can see.

Queries are sorted, so a block of them needs the keys from its first query's start to its last query's stop: key
prefixes under causal attention. Flash attention's causal flag would be wrong here: it aligns queries with the last
keys, but gathered queries lie anywhere.
"""

import math
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.ops.routed_attention.inputs import Intervals

_LONGEST_ADDITIVE = 2048
"""Keys beyond which, as in training, rows of masks cost more to copy than booleans to turn into them (docs/LOG.md)."""


WINDOW_BLOCK = 64
"""Queries a block where all tokens look through a window: each block reads its window and itself."""


def block_size(queries: int, keys: int) -> int:
    """Queries a block, where ``queries`` of them spread over a stretch of ``keys`` keys.

    A block reads keys up to its last query: what it reads beyond its first is wasted on some. Sparse queries therefore
    want small blocks, dense ones blocks as large as the kernel likes. Measured on a CPU (docs/LOG.md).
    """
    if queries >= 0.4 * keys:
        return 192
    return 64 if queries >= 256 else 32


def window_keys(tokens: int, window: int) -> float:
    """Keys that a token's block reads on average, where all of ``tokens`` look through a window."""
    blocks = ((first, min(first + WINDOW_BLOCK, tokens)) for first in range(0, tokens, WINDOW_BLOCK))
    return sum((last - first) * (last - max(0, first - window + 1)) for first, last in blocks) / tokens


def share_of_keys(queries: float, keys: float) -> float:
    """Keys that a gathered query's block reads on average, as a share of ``keys``, if they are spread evenly."""
    if queries <= 0:
        return 0.0
    size = block_size(math.ceil(queries), math.ceil(keys))
    ends = [min((index + 1) * size, queries) for index in range(math.ceil(queries / size))]
    return sum((end - start) / queries * end / queries for start, end in pairwise([0.0, *ends]))


class Block(NamedTuple):
    """Queries ``first`` to ``last`` (without) of one batch row and the keys ``start`` to ``stop`` (without).

    ``same_start`` tells that all of them see from ``start`` on, ``nonempty`` that each sees a key.
    """

    row: int
    first: int
    last: int
    start: int
    stop: int
    same_start: bool
    nonempty: bool


class BlockPlan:
    """The blocks of a set of queries. Made once a site and call; reading it costs one device synchronisation.

    Args:
        block: most queries a block; by default what ``block_size`` says of each row.
    """

    def __init__(self, spans: Intervals, *, block: int | None = None) -> None:
        self.spans, self.block = spans, block

    @cached_property
    def blocks(self) -> list[Block]:
        """In the order of the queries."""
        row, start, stop = torch.stack([self.spans.row, self.spans.start, self.spans.stop]).tolist()
        found = []
        begins = [0, *(i for i in range(1, len(row)) if row[i] != row[i - 1]), len(row)]
        for begin, end in pairwise(begins):
            if begin == end:
                continue
            size = self.block or block_size(end - begin, stop[end - 1] - min(start[begin:end]))
            for first in range(begin, end, size):
                last = min(first + size, end)
                starts, stops = start[first:last], stop[first:last]
                low = min(starts)
                nonempty = all(a < b for a, b in zip(starts, stops, strict=True))
                found.append(Block(row[first], first, last, low, max(stops), max(starts) == low, nonempty))
        return found


def gathered_routed_attention(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    spans: Intervals,
    *,
    visible: Bool[Tensor, "N S"] | None = None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    plan: BlockPlan | None = None,
) -> Float[Tensor, "N H V"]:
    """See ``routed_attention``. Cost: about the share of queries of full causal attention."""
    count, heads = query.shape[:2]
    if count == 0:
        return query.new_empty(0, heads, value.shape[-1])
    keys, values = key.transpose(1, 2), value.transpose(1, 2)  # (B, G, S, K)
    blocks = (plan or BlockPlan(spans)).blocks
    if 1 < count == len({block.row for block in blocks}) and visible is None and softcap is None:
        return _one_a_row(query, keys, values, spans, blocks, scale=scale, dropout=dropout)
    additive = None
    plain = visible is None and softcap is None and not query.requires_grad
    if plain and query.device.type == "cpu" and key.shape[1] <= _LONGEST_ADDITIVE:
        additive = _PrefixMasks(key.shape[1], query.dtype)
    # Rows first: the gradient of a slice is as large as what it was cut from, filled with zeros and added.
    own_keys, own_values = keys.unbind(), values.unbind()
    outputs = []
    for row, first, last, start, stop, same_start, nonempty in blocks:
        if stop <= start:
            outputs.append(query.new_zeros(last - first, heads, value.shape[-1]))
            continue
        if additive is not None and same_start:
            mask = additive.of(start, stop, spans.stop[first:last])
        else:
            index = torch.arange(start, stop, device=query.device)
            mask = index < spans.stop[first:last, None]
            if not same_start:
                mask = mask & (index >= spans.start[first:last, None])
            if visible is not None:
                mask = mask & visible[first:last, start:stop]
        out = _attend(
            query[first:last].transpose(0, 1).unsqueeze(0),
            own_keys[row][None, :, start:stop],
            own_values[row][None, :, start:stop],
            mask,
            scale=scale,
            softcap=softcap,
            dropout=dropout,
        )
        if visible is not None or not nonempty:
            # A query without keys gets zeros; kernels disagree on what an empty softmax is.
            seen = mask if mask.dtype == torch.bool else mask == 0.0
            out = torch.where(seen.any(dim=-1)[:, None], out, 0.0)
        outputs.append(out.squeeze(0).transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _PrefixMasks:
    """Masks of key prefixes, added to scores: each row is a stretch of zeros followed by minus infinity.

    A CPU's kernel turns a boolean mask into this form anyway, in passes that cost more than to copy the rows.
    """

    def __init__(self, keys: int, dtype: torch.dtype) -> None:
        self.keys = keys
        self.line = torch.zeros(2 * keys, dtype=dtype)
        self.line[keys:] = float("-inf")

    def of(self, start: int, stop: int, visible: Int[Tensor, "M"]) -> Float[Tensor, "M L"]:
        """Of queries that see the keys from ``start`` to ``visible`` (without), over the keys ``start`` to ``stop``."""
        return self.line.unfold(0, stop - start, 1).index_select(0, self.keys + start - visible)


def _one_a_row(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B G S K"],
    value: Float[Tensor, "B G S V"],
    spans: Intervals,
    blocks: list[Block],
    *,
    scale: float,
    dropout: float,
) -> Float[Tensor, "N H V"]:
    """At most one query a row, as in decoding: one call for all rows, those without a query among them.

    To read the keys of a row in vain costs less than to copy those of the others, unless most rows have no query.
    """
    batch, count = key.shape[0], query.shape[0]
    start, stop = min(block.start for block in blocks), max(block.stop for block in blocks)
    if stop <= start:  # nobody sees a key
        return query.new_zeros(count, query.shape[1], value.shape[-1])
    key, value = key[:, :, start:stop], value[:, :, start:stop]
    together = 3 * count >= batch
    if together and count < batch:
        query = query.new_zeros(batch, *query.shape[1:]).index_copy(0, spans.row, query)
    elif not together:
        key, value = key.index_select(0, spans.row), value.index_select(0, spans.row)
    mask = None
    if any(block.start != start or block.stop != stop for block in blocks):
        index = torch.arange(start, stop, device=query.device)
        mask = (index >= spans.start[:, None]) & (index < spans.stop[:, None])
        if together and count < batch:
            mask = mask.new_ones(batch, stop - start).index_copy(0, spans.row, mask)
        mask = mask[:, None, None, :]
    # The heads that share a key stand in the place of its queries: no key is repeated, whatever the kernel.
    grouped = query.unflatten(1, (key.shape[1], -1))
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    out = out.flatten(1, 2)
    if together and count < batch:
        out = out.index_select(0, spans.row)
    return (
        out
        if all(block.nonempty for block in blocks)
        else torch.where((spans.stop > spans.start)[:, None, None], out, 0.0)
    )


def _attend(
    query: Float[Tensor, "1 H M K"],
    key: Float[Tensor, "1 G L K"],
    value: Float[Tensor, "1 G L V"],
    mask: Bool[Tensor, "M L"] | Float[Tensor, "M L"],
    *,
    scale: float,
    softcap: float | None,
    dropout: float,
) -> Float[Tensor, "1 H M V"]:
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=True
        )
    # No fused kernel caps its scores.
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = scale * (grouped @ key.unsqueeze(2).transpose(-1, -2))
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return (weights @ value.unsqueeze(2)).flatten(1, 2)
