"""The pieces of the chunked form that have a plain counterpart."""

import pytest
import torch

from layerroute.ops.gated_delta.chunk_math import from_chunks, to_chunks, unit_lower_inverse


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("entries", ["random", "repeated keys"])
def test_inverse_of_a_unit_triangle_in_single_precision(entries: str, size: int) -> None:
    lower = torch.full((2, 3, size, size), 0.97)
    if entries == "random":
        lower = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)) / size**0.5
    lower = lower.tril(-1)
    expected = torch.linalg.inv(lower.double() + torch.eye(size, dtype=torch.float64))
    difference = (unit_lower_inverse(lower) - expected).abs().max()
    assert difference <= 3e-6 * expected.abs().max()


@pytest.mark.parametrize("time", [1, 16, 17, 40])
def test_chunks_hold_the_tokens_in_order_and_zeros_behind(time: int) -> None:
    tokens = torch.arange(1.0, 2 * time * 3 * 2 + 1).view(2, time, 3, 2)
    chunks = to_chunks(tokens, 16, torch.float64)
    assert chunks.shape == (-(-time // 16), 2 * 3, 16, 2) and chunks.dtype == torch.float64
    row, head, last = 1, 2, time - 1
    assert torch.equal(chunks[last // 16, row * 3 + head, last % 16], tokens[row, last, head].double())
    assert chunks.ne(0).sum() == tokens.numel()
    back = torch.empty_like(tokens)
    from_chunks(chunks, back)
    assert torch.equal(back, tokens)
