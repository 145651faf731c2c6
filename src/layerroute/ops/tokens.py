"""Which tokens take a path, as indices: what sparse execution gathers by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(kw_only=True)
class TokenIndex:
    """Some tokens of a batch, in order of row and time: those that take one path at a site.

    Attributes:
        flat: index into the B·T tokens.
        row, time: the same in two parts.
        host: the same on the CPU (itself, if it is there), where blocks are planned without asking the device.
        rest: index into the B·T tokens of all others, where it was asked for.
    """

    flat: Int[Tensor, "N"]
    row: Int[Tensor, "N"]
    time: Int[Tensor, "N"]
    host: "TokenIndex | None" = None
    rest: Int[Tensor, "M"] | None = None

    @classmethod
    def of(cls, flat: Int[Tensor, "N"], on_host: Int[Tensor, "N"], time: int) -> "TokenIndex":
        """From flat indices of a batch with ``time`` tokens a row, and their copy on the CPU."""
        host = cls(flat=on_host, row=on_host // time, time=on_host % time)
        host.host = host
        return host if flat is on_host else cls(flat=flat, row=flat // time, time=flat % time, host=host)

    def ranks(self, batch: int) -> tuple[Int[Tensor, "N"], Int[Tensor, "B"]]:
        """How many of them stand before each in its row; and how many each of ``batch`` rows has, on the CPU."""
        assert self.host is not None
        count = torch.bincount(self.host.row, minlength=batch)
        first = (count.cumsum(0) - count).to(self.row.device)
        return torch.ones_like(self.row).cumsum(0) - 1 - first[self.row], count


def token_indices(
    chosen: Bool[Tensor, "R N"],
    counts: Sequence[int],
    wanted: Sequence[bool],
    time: int,
    device: torch.device,
    *,
    rest: bool = False,
) -> list[TokenIndex | None]:
    """The chosen tokens of each of R sites where they are wanted.

    Args:
        chosen: over the B·T tokens, on the CPU.
        counts: of each row of ``chosen``.
        wanted: which sites need an index.
        device: where the indices are needed; they are sent there without waiting.
        rest: also of the tokens that were not chosen.
    """
    hosts, heres = _by_site(chosen, counts, device)
    made = [
        TokenIndex.of(here, host, time) if want else None
        for here, host, want in zip(heres, hosts, wanted, strict=True)
    ]
    if rest:
        others = _by_site(~chosen, [chosen.shape[1] - count for count in counts], device)[1]
        for index, other in zip(made, others, strict=True):
            if index is not None:
                index.rest = other
    return made


def _by_site(
    chosen: Bool[Tensor, "R N"], counts: Sequence[int], device: torch.device
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Flat indices of each site, on the CPU and on the device."""
    on_host = chosen.nonzero()[:, 1]
    hosts = on_host.split(list(counts))
    return hosts, (
        hosts if device.type == "cpu" else on_host.to(device, non_blocking=True).split(list(counts))
    )
