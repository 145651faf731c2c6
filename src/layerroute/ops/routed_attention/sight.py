"""What gathered tokens see of the keys of their rows, planned on the host where their indices are known there."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from layerroute.ops.routed_attention.gathered import BlockPlan
from layerroute.ops.routed_attention.inputs import Intervals, Padding, intervals
from layerroute.ops.tokens import TokenIndex


class Sight(NamedTuple):
    """What gathered queries see: their intervals of keys, any further restriction, and their blocks if planned."""

    spans: Intervals
    visible: Bool[Tensor, "N S"] | None = None
    plan: BlockPlan | None = None


def sight_of(
    index: TokenIndex,
    padding: Padding,
    keys: int,
    *,
    past: int,
    offset: int = 0,
    window: int | None = None,
    documents: Int[Tensor, "B T"] | None = None,
    heads: int = 1,
) -> Sight:
    """What the indexed new tokens see of ``keys`` cached and new ones.

    Args:
        padding: over all tokens of the sequence.
        past: tokens before the new ones.
        offset: of these, first ones that are no longer among the keys.
        heads: where the index is over pairs of row and head, as are the rows of keys.
    """
    if heads > 1 and documents is not None:
        documents = documents.repeat_interleave(heads, dim=0)

    def see(tokens: TokenIndex, start: Tensor | None, ids: Tensor | None) -> Intervals:
        if start is not None:
            start = (start - offset).clamp_min(0).repeat_interleave(heads)
        at = tokens.time + (past - offset)
        return intervals(tokens.row, at, key_start=start, window=window, documents=ids)

    spans = see(index, padding.start, documents)
    plan = None
    if index.host is not None and index.host is not index:
        ids = None if documents is None else documents.cpu()
        plan = BlockPlan(see(index.host, padding.start_on_host, ids))
    if padding.holes is None:
        return Sight(spans, None, plan)
    beyond = max(0, keys - padding.holes.shape[1] + offset)
    held = F.pad(padding.holes[:, offset:], (0, beyond))
    return Sight(spans, held[index.row // heads], plan)
