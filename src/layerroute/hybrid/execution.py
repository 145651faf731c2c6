"""From the decisions of a call to what each routed layer computes: both paths for all tokens, or chosen ones only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from layerroute.ops.tokens import TokenIndex, token_indices
from layerroute.routing.decision import RouteDecision
from layerroute.routing.execution import Profitability


@dataclass(kw_only=True)
class HybridProfitability(Profitability):
    """From which share of a call's tokens that take GDN ``auto`` executes a layer sparsely."""

    key = "model.profitability"

    prefill: float = 0.1
    decode: float = 0.0
    train: float = 0.1


@dataclass(frozen=True, kw_only=True)
class LayerRoute:
    """Which tokens take which path at one layer, for sparse execution.

    Attributes:
        paths: the valid tokens of each path, cheapest first; with ``heads`` their (row and head, time) pairs.
        heads: number of heads that choose apart, or None where tokens choose.
        gated: whether gates carry a gradient.
    """

    paths: tuple[TokenIndex, ...]
    heads: int | None
    gated: bool


def plan_routes(
    decision: RouteDecision, valid: Bool[Tensor, "B T"], threshold: float, *, heads: int | None, gated: bool
) -> list[LayerRoute | None]:
    """A route for each layer that is decided about, None where it is executed masked. One copy to the CPU."""
    batch, time = valid.shape
    group = heads or 1
    softmax = decision.expensive
    gdn = (decision.choice == 0) & valid.unsqueeze(-1)
    here = torch.stack([gdn, softmax], dim=-1)  # (B, T, R, paths)
    # Layers x paths, each over (B, heads, T): the pairs of a row lie together, in order of time.
    here = here.unflatten(2, (-1, group)).permute(2, 4, 0, 3, 1).reshape(-1, batch * group * time)
    on_host = here.cpu()
    counts: Sequence[int] = on_host.sum(dim=1).tolist()
    wanted = []
    for first, second in zip(counts[::2], counts[1::2], strict=True):
        one_path_only = first == 0 or second == 0
        wanted.append(one_path_only or first >= threshold * (first + second))
    chosen = [want for want in wanted for _ in range(2)]
    indices = token_indices(on_host, counts, chosen, time, here.device)
    routes: list[LayerRoute | None] = []
    for layer, want in enumerate(wanted):
        pair = indices[2 * layer : 2 * layer + 2]
        paths = tuple(index for index in pair if index is not None)
        routes.append(LayerRoute(paths=paths, heads=heads, gated=gated) if want else None)
    return routes
