"""What every backend of routed attention is given: which queries there are, and which keys each may see."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """The keys that each query may see: of its batch row, indices from ``start`` up to but without ``stop``.

    Causality, left padding, sliding windows and packed documents are all intervals, so that a backend needs to know
    no more than this.

    Attributes:
        row: (N,) batch row of each query. Queries are sorted by row.
        start: (N,) first key.
        stop: (N,) one past the last key; a query with stop <= start sees none and gets zeros.
    """

    row: Int[Tensor, "N"]
    start: Int[Tensor, "N"]
    stop: Int[Tensor, "N"]

    def visible(self, keys: int) -> Bool[Tensor, "N S"]:
        """The intervals as a mask over ``keys`` keys."""
        index = torch.arange(keys, device=self.row.device)
        return (index >= self.start[:, None]) & (index < self.stop[:, None])


class Padding(NamedTuple):
    """Padding that a real token could see: in front of the rows, or anywhere. All None where there is none.

    Attributes:
        start: index of the first real token of each row, where that says it all; ``start_on_host`` on the CPU.
        holes: else, the mask itself (False is padding).
    """

    start: Int[Tensor, "B"] | None = None
    start_on_host: Int[Tensor, "B"] | None = None
    holes: Bool[Tensor, "B S"] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "B S"], on_host: Bool[Tensor, "B S"] | None = None) -> "Padding":
        """From a mask over all keys. Copies it to the CPU unless it is given there too."""
        held = mask.cpu() if on_host is None else on_host
        start = held.to(torch.uint8).argmax(dim=1)
        last = held.shape[1] - 1 - held.flip(1).to(torch.uint8).argmax(dim=1)
        if bool(((last - start + 1 != held.sum(dim=1)) & held.any(dim=1)).any()):
            return cls(holes=mask)
        if not bool((start > 0).any()):
            return cls()
        return cls(start=start.to(mask.device, non_blocking=True), start_on_host=start)


def document_starts(documents: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Index of the first token of each token's document; documents are runs of equal ids."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return torch.where(begins, index, 0).cummax(dim=1).values


def intervals(
    row: Int[Tensor, "N"],
    position: Int[Tensor, "N"],
    *,
    key_start: Int[Tensor, "B"] | None = None,
    window: int | None = None,
    documents: Int[Tensor, "B S"] | None = None,
) -> Intervals:
    """Intervals of queries that see the past: each its own key (at ``position``) and those before.

    Args:
        row, position: where each query stands, as indices into the rows of keys.
        key_start: first key of each row that is not left padding.
        window: of sliding-window attention: a query sees the last ``window`` keys, its own among them.
        documents: packed documents: a query sees its own document only.
    """
    start = torch.zeros_like(position)
    if key_start is not None:
        start = torch.maximum(start, key_start.to(position)[row])
    if window is not None:
        start = torch.maximum(start, position - (window - 1))
    if documents is not None:
        start = torch.maximum(start, document_starts(documents).to(position)[row, position])
    return Intervals(row=row, start=start, stop=position + 1)


def check_shapes(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    spans: Intervals,
    visible: Bool[Tensor, "N S"] | None,
) -> None:
    """Raise ValueError where shapes do not fit each other."""
    if query.shape[1] % key.shape[2]:
        raise ValueError(f"{query.shape[1]} query heads cannot share {key.shape[2]} key heads evenly")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"keys are {tuple(key.shape)} but values are {tuple(value.shape)}")
    if spans.row.shape[0] != query.shape[0]:
        raise ValueError(f"{query.shape[0]} queries but {spans.row.shape[0]} intervals")
    if visible is not None and visible.shape != (query.shape[0], key.shape[1]):
        raise ValueError(
            f"`visible` is {tuple(visible.shape)} for {query.shape[0]} queries and {key.shape[1]} keys"
        )
