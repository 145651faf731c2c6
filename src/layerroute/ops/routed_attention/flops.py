"""How many keys routed attention reads, as ``FlopCounterMode`` counts its blocks."""

import math
from itertools import pairwise

from layerroute.ops.routed_attention.gathered import block_size


def share_of_keys(queries: float, keys: float) -> float:
    """Keys that a gathered query's block reads on average, as a share of ``keys``, if they are spread evenly."""
    if queries <= 0:
        return 0.0
    size = block_size(math.ceil(queries), math.ceil(keys))
    ends = [min((index + 1) * size, queries) for index in range(math.ceil(queries / size))]
    return sum((end - start) / queries * end / queries for start, end in pairwise([0.0, *ends]))
