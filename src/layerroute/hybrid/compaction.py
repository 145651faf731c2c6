"""Bringing the tokens of one path together, row by row and head by head, and back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Compaction:
    """A stable order of the tokens of each row (and head) in which members come first.

    Attributes:
        order: (B, T, M) index of the token that stands in each slot; M is 1, or H when heads choose apart.
        count: (B, M) number of members.
        member: (B, T, M) which slots hold members.
    """

    order: Int[Tensor, "B T M"]
    count: Int[Tensor, "B M"]
    member: Bool[Tensor, "B T M"]

    @classmethod
    def of(cls, member: Bool[Tensor, "B T M"]) -> "Compaction":
        """The compaction of a membership."""
        order = torch.argsort((~member).to(torch.uint8), dim=1, stable=True)
        count = member.sum(dim=1)
        slots = torch.arange(member.shape[1], device=member.device)
        return cls(order, count, slots[None, :, None] < count[:, None, :])

    @classmethod
    def of_ranked(
        cls, row: Int[Tensor, "N"], rank: Int[Tensor, "N"], time: Int[Tensor, "N"], count: Int[Tensor, "B"]
    ) -> "Compaction":
        """Members given one by one, and nobody else: as many slots as the fullest row needs, and at least one.

        Args:
            row, rank, time: where each member stands: its row, its slot there, its place in the sequence.
            count: members of each row, on the CPU.
        """
        width = max(1, int(count.max()))
        order = torch.zeros(count.shape[0], width, 1, dtype=torch.long, device=row.device)
        order = order.index_put((row, rank, torch.zeros_like(row)), time)
        here = count.to(row.device).unsqueeze(-1)
        slots = torch.arange(width, device=row.device)
        return cls(order, here, slots[None, :, None] < here[:, None, :])

    def _index(self, x: Tensor, order: Tensor) -> Tensor:
        index = order.view(*order.shape, *[1] * (x.dim() - 3))
        return index.expand(*order.shape[:2], *x.shape[2:])

    def gather(self, x: Tensor) -> Tensor:
        """(B, T, H, …) in compacted order."""
        return x.gather(1, self._index(x, self.order))

    def restore(self, x: Tensor) -> Tensor:
        """(B, T, H, …) from compacted order back to the order of the sequence."""
        return torch.empty_like(x).scatter(1, self._index(x, self.order), x)
