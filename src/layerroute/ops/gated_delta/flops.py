"""How many FLOPs the chunked gated delta rule takes, as ``FlopCounterMode`` counts them."""

from layerroute.ops.gated_delta.chunk_math import SMALLEST_CHUNK
from layerroute.ops.gated_delta.chunked import CHUNK


def gated_delta_flops(
    time: int, *, heads: int, key_dim: int, value_dim: int, chunk: int = CHUNK, block: int = SMALLEST_CHUNK
) -> float:
    """Forward FLOPs of the chunked rule over one sequence of ``time`` tokens.

    Counts the matrix products of ``chunked.py`` (scores of queries and keys, block inverse, reads and writes of the
    state, output); the triangular solve of the smallest blocks, element-wise work and the short-call recurrence of
    decoding are left out.

    Args:
        chunk: tokens a chunk; shorter sequences use the next power of two.
        block: smallest block of the inverse.
    """
    size = min(chunk, max(block, 1 << (time - 1).bit_length()))
    inverse = 0
    width = block
    while width < size:
        inverse += 2 * size * width * width
        width *= 2
    pairs = 4 * size * size * (key_dim + value_dim)
    state = 6 * size * key_dim * value_dim
    return float(-(-time // size) * heads * (pairs + state + inverse))
