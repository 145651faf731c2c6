"""Decisions about groups of tokens: forced for some, spread over a group, made from a sequence's first tokens."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.routing.decision import RouteDecision
from layerroute.skipping.context import CallContext


def force_run(decision: RouteDecision, where: Bool[Tensor, "B T"]) -> RouteDecision:
    """The decision with all sites running at the tokens ``where``, with certainty and without gradient."""
    run = len(decision.paths) - 1
    sure = torch.arange(len(decision.paths), device=where.device) == run
    mask = where[..., None, None]
    return replace(
        decision,
        choice=decision.choice.masked_fill(where.unsqueeze(-1), run),
        probabilities=torch.where(mask, sure.to(decision.probabilities.dtype), decision.probabilities),
        gate=torch.where(mask, sure.to(decision.gate.dtype), decision.gate),
    )


def spread(decision: RouteDecision, group: Int[Tensor, "B T"], valid: Bool[Tensor, "B T"]) -> RouteDecision:
    """A decision about groups of tokens (B or 1, groups), as one about the tokens."""
    batch = group.shape[0]
    rows = torch.arange(batch, device=group.device).unsqueeze(1)

    def take(x: Tensor) -> Tensor:
        return x.expand(batch, *x.shape[1:])[rows, group]

    return replace(
        decision,
        choice=take(decision.choice),
        probabilities=take(decision.probabilities),
        gate=take(decision.gate),
        valid=valid,
    )


def codes_of(context: CallContext) -> Int[Tensor, "B T"]:
    """What identifies a sequence for the random control."""
    ids = context.positions if context.token_ids is None else context.token_ids
    return (ids.long() + 1) * (context.positions + 1)


def remember_prefix(
    state: dict[str, Tensor],
    hidden: Float[Tensor, "B T D"],
    codes: Int[Tensor, "B T"],
    inside: Bool[Tensor, "B T"],
    context: CallContext,
    length: int,
) -> tuple[Float[Tensor, "B N D"], Int[Tensor, "B N"]]:
    """States and codes of the first N tokens of each row, those of earlier calls among them.

    They are kept by position, so that a cropped and continued cache overwrites what it replaces.
    """
    batch, _, size = hidden.shape
    if "states" not in state:
        state["states"] = hidden.new_zeros(batch, length, size)
        state["codes"] = codes.new_zeros(batch, length)
    row, time = inside.nonzero(as_tuple=True)
    where = (row, context.positions[row, time])
    state["states"] = state["states"].detach().index_put(where, hidden[row, time])
    state["codes"] = state["codes"].index_put(where, codes[row, time])
    return state["states"], state["codes"]
