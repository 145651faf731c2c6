"""How many keys routed attention reads, as ``FlopCounterMode`` counts its blocks."""

import math
from itertools import pairwise

from layerroute.ops.routed_attention.gathered import block_size

WINDOW_BLOCK = 64
"""Queries a block where all tokens look through a window: each block reads its window and itself."""


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
