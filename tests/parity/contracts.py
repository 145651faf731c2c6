"""Contracts that every routed model must keep, as checks that each model's tests call.

A model is a transformers causal LM whose outputs have ``logits`` and ``past_key_values``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 2e-4  # fp32 round-off of small models with deliberately large weights


def tokens(batch: int, time: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Random token ids that never are 0, which the tests use for padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (batch, time), generator=generator)


def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal to round-off, with a message that says what was compared."""
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: differ by {difference}"


@torch.no_grad()
def cached_logits(
    model: torch.nn.Module, ids: Tensor, cuts: Sequence[int], mask: Tensor | None = None
) -> Tensor:
    """Logits of a pass in chunks that end at ``cuts``, each continuing the cache of the one before."""
    pieces, past, start = [], None, 0
    for stop in (*cuts, ids.shape[1]):
        if stop == start:
            continue
        seen = None if mask is None else mask[:, :stop]
        out = model(ids[:, start:stop], attention_mask=seen, past_key_values=past, use_cache=True)
        pieces.append(out.logits)
        past, start = out.past_key_values, stop
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def check_cached_equals_uncached(
    model: torch.nn.Module, ids: Tensor, cuts: Sequence[int], tolerance: float = TOLERANCE
) -> None:
    """Contract 2: any chunking of the sequence gives the same logits."""
    whole = model(ids, use_cache=False).logits
    assert_close(cached_logits(model, ids, cuts), whole, f"cached at {tuple(cuts)}", tolerance)


def left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """A batch of sequences of unequal length with padding (id 0) on the left, and its attention mask."""
    longest = max(row.numel() for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=rows[0].device)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, longest - row.numel() :] = row
        mask[index, longest - row.numel() :] = 1
    return ids, mask


@torch.no_grad()
def check_batched_equals_single(
    model: torch.nn.Module, rows: Sequence[Tensor], cuts: Sequence[int] = (), tolerance: float = TOLERANCE
) -> None:
    """Contract 2: a left-padded batch, whole or cached in chunks, gives each row what it gets alone."""
    ids, mask = left_padded(rows)
    whole = model(ids, attention_mask=mask, use_cache=False).logits
    chunked = cached_logits(model, ids, cuts, mask)
    for index, row in enumerate(rows):
        alone = model(row[None], use_cache=False).logits[0]
        what = f"row {index} of a padded batch"
        assert_close(whole[index, -row.numel() :], alone, what, tolerance)
        assert_close(chunked[index, -row.numel() :], alone, f"{what}, cached at {tuple(cuts)}", tolerance)


@torch.no_grad()
def check_prefix_invariance(model: torch.nn.Module, ids: Tensor, position: int, vocabulary: int) -> None:
    """Contract 4: changing a later token changes no earlier logit, bit for bit."""
    changed = ids.clone()
    changed[:, position:] = 1 + (changed[:, position:] + 5) % (vocabulary - 1)
    before = model(ids, use_cache=False).logits[:, :position]
    after = model(changed, use_cache=False).logits[:, :position]
    assert_close(after, before, f"logits before position {position} after a later change", tolerance=1e-6)


@torch.no_grad()
def check_deterministic(model: torch.nn.Module, ids: Tensor) -> None:
    """Contract 5: two passes are bit-identical."""
    assert torch.equal(model(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@torch.no_grad()
def check_generation(model: torch.nn.Module, rows: Sequence[Tensor], new: int = 6) -> None:
    """Greedy generation from a left-padded batch equals greedy generation by full passes, row by row."""
    ids, mask = left_padded(rows)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    for index, row in enumerate(rows):
        text = row[None]
        for _ in range(new):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(out[index, -new:], text[0, -new:]), f"row {index}"
