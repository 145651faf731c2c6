"""From the decisions of a call to what each routed layer computes: both paths for all tokens, or chosen ones only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.errors import UserError, nearest
from layerroute.routing.decision import RouteDecision
from layerroute.routing.estimators import SPARSE_ESTIMATORS
from layerroute.routing.tokens import TokenIndex, token_indices

EXECUTIONS = ("auto", "masked", "sparse")


@dataclass(frozen=True, kw_only=True)
class Profitability:
    """From which share of a call's tokens that take GDN ``auto`` executes a layer sparsely.

    A path that no token takes is never computed, whatever these say, but for what a cache must hold of it. The
    defaults were measured on a small CPU (``layerroute bench calibrate`` measures others).

    Attributes:
        prefill: of a call with more than one new token a row.
        decode: of a call with one new token a row.
        train: of a training call (only with estimators whose gradient needs the chosen path alone).
    """

    prefill: float = 0.1
    decode: float = 0.0
    train: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"model.profitability.{item.name} is a share from 0 to 1, got {value}")

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> "Profitability":
        """From a configuration's mapping.

        Raises:
            UserError: for unknown keys and impossible values.
        """
        known = [item.name for item in fields(cls)]
        for key in given or {}:
            if key not in known:
                raise UserError(f"model.profitability: unknown key {key!r}.{nearest(key, known)}")
        return cls(**(given or {}))


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


def threshold_of(
    execution: str,
    profitability: Profitability,
    *,
    estimator: str,
    gated: bool,
    obstacle: str | None,
    training: bool,
    time: int,
) -> float | None:
    """The share of tokens on GDN from which a layer is executed sparsely; None: not in this call.

    Raises:
        UserError: if sparse execution is asked for and not possible.
    """
    if execution == "masked":
        return None
    if obstacle is None and gated and estimator not in SPARSE_ESTIMATORS:
        obstacle = (
            f"the gradient of routing.estimator {estimator!r} needs both paths of every token; only "
            f"{' and '.join(SPARSE_ESTIMATORS)} train sparsely"
        )
    if obstacle is not None:
        if execution == "sparse":
            raise UserError(f"execution: sparse is not possible: {obstacle}; use auto or masked")
        return None
    if execution == "sparse":
        return 0.0
    if torch.compiler.is_compiling():
        return None  # what it does depends on data
    if training:
        return profitability.train
    return profitability.decode if time == 1 else profitability.prefill


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


def gate_of(gate: Float[Tensor, "B T M P"], path: int, index: TokenIndex) -> Float[Tensor, "N 1"]:
    """The factor of each indexed token's output on a path."""
    return gate[:, :, 0, path].flatten()[index.flat].unsqueeze(-1)
