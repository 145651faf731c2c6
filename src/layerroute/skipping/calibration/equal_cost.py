"""A routed model served at the share that another arm saves: no verdict at unequal cost.

Shares are of the decoder layers' forward FLOPs (`saved_share`), not of sites: an MLP is most of a layer, and skip paths
cost something. Routed arms meet a share by one common offset of all thresholds, on the very text that is judged.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.precision import choose_precision
from layerroute.routing.module import Routing
from layerroute.skipping.calibration.arms import evaluate_arms, installed
from layerroute.skipping.calibration.calibrate import FittedArms, Stage, silent
from layerroute.skipping.calibration.heldout import Difference, Score, paired_bootstrap, saved_share, score
from layerroute.skipping.model import get_router

TOLERANCE = 0.005
"""Shares of the layers' FLOPs that are this near are equal: half a point."""

PASSES = 8
"""Forward passes over the text at most."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A routed arm against another arm at the cost of the other, on the same windows.

    Attributes:
        served: the routed arm as it was moved to the other's share; its share is within half a point of it.
        difference: routed less the other, in nats per token.
        worst: the largest difference of a single window.
    """

    served: Score
    difference: Difference
    worst: float

    def to_dict(self) -> dict[str, float]:
        """For records."""
        return {
            "routed_loss": self.served.loss,
            "routed_saved": self.served.saved,
            "routed_skipped": self.served.skipped,
            "mean": self.difference.mean,
            "low": self.difference.low,
            "high": self.difference.high,
            "worst": self.worst,
        }


def agrees(score: Score, share: float) -> bool:
    """Whether an arm's share of saved FLOPs is the one given, within half a point."""
    return abs(score.saved - share) <= TOLERANCE


def matched(served: Score, other: Score) -> Matched | None:
    """The verdict's numbers, or None where the two do not cost the same."""
    if not agrees(served, other.saved):
        return None
    gap = served.losses - other.losses
    return Matched(
        served=served, difference=paired_bootstrap(served.losses, other.losses), worst=float(gap.max())
    )


def serve_at(
    model: Any,
    ids: Int[Tensor, "N T"],
    share: float,
    *,
    precision: str = "fp32",
    start: float = 0.0,
    passes: int = PASSES,
) -> Score:
    """Score windows with all thresholds moved by one offset, until the share of saved FLOPs is ``share``.

    A router that holds its rate (``serve: rate``) is asked for another rate instead. The offset is found between two
    that were served; the first steps are guided by margins. Sites whose decision does not depend on the token stay as
    they are, and routers that have nothing to move (controls) are scored once. The thresholds are put back.

    Args:
        model: with its router.
        share: of the decoder layers' forward FLOPs to save, on these very windows.
        precision: of the products, ``fp32`` or ``bf16``.
        start: offset of the first pass, in logit units.
        passes: forward passes over the windows at most.

    Returns:
        The nearest score found. Ask `agrees` whether it is near enough.
    """
    router = get_router(model)
    if router.config.serve == "rate":
        return _ask(model, ids, share, precision, passes)
    moved = [routing for routing in router.all_routings() if routing.router is not None]
    with _movable(moved) as held:
        best = found = _scored(model, ids, start, moved, held, precision)
        movable = [margins.std(dim=0) > 0 for margins in found[1]]
        if not any(mask.any() for mask in movable):
            return best[0]
        low, high, offset = (-math.inf, math.nan), (math.inf, math.nan), start
        for turn in range(passes - 1):
            if agrees(best[0], share):
                break
            # A higher threshold sends fewer tokens to the expensive path, so that more is saved.
            here = offset, found[0].saved
            low, high = (here, high) if found[0].saved < share else (low, here)
            if math.isfinite(low[0]) and math.isfinite(high[0]):
                # What was served at both ends knows of sinks, and of states that move with the decisions below.
                part = (share - low[1]) / max(high[1] - low[1], 1e-9)
                offset = low[0] + min(max(part, 0.1), 0.9) * (high[0] - low[0])
            else:
                bracket = low[0], high[0]
                told = _next(model, ids.shape[1], found, offset, bracket, share, movable, held)
                # A step that fell short is followed by a longer one, so that the share is soon between two.
                offset += (told - offset) * (1.0 if turn == 0 else 1.5)
            found = _scored(model, ids, offset, moved, held, precision, movable)
            if abs(found[0].saved - share) < abs(best[0].saved - share):
                best = found
    return best[0]


def compare_arms(
    model: Any, calibration: FittedArms, heldout: Int[Tensor, "K T"], *, stage: Stage = silent
) -> tuple[dict[str, Score], dict[str, Matched | None]]:
    """Every arm on held-out windows, and the routed arm against each control at the control's cost.

    Returns:
        Scores as served (``dense`` is the model alone), and by control what `matched` says of the routed arm moved to
        its share.
    """
    scores = evaluate_arms(model, calibration, heldout, stage=stage)
    advance = stage("equal cost")
    precision = choose_precision(calibration.config.precision, model.device).name
    others = [name for name in scores if name not in ("dense", "routed")]
    with installed(model, calibration.arms["routed"], calibration.skip):
        against = match_all(
            model, heldout, {name: scores[name] for name in others}, precision=precision, advance=advance
        )
    return scores, against


def match_all(
    model: Any,
    ids: Int[Tensor, "N T"],
    others: dict[str, Score],
    *,
    precision: str = "fp32",
    advance: Any = lambda share: None,
) -> dict[str, Matched | None]:
    """The routed model against each of several arms, each at that arm's share. Equal shares are served once."""
    served: list[Score] = []
    found: dict[str, Matched | None] = {}
    for name, other in others.items():
        near = next((one for one in served if agrees(one, other.saved)), None)
        if near is None:
            near = serve_at(model, ids, other.saved, precision=precision)
            served.append(near)
        found[name] = matched(near, other)
        advance(len(found) / len(others))
    return found


def _ask(model: Any, ids: Tensor, share: float, precision: str, passes: int) -> Score:
    """Score windows under a router that holds its rate, asked for whatever saves ``share``; its rates are put back.

    What is saved is nearly in proportion to the share skipped, so that each pass asks in proportion.
    """
    router = get_router(model)
    held = [routing.rate.clone() for routing in router.all_routings()]
    skip = 1.0 - float(torch.cat(held).mean())
    best: Score | None = None
    try:
        for _ in range(passes):
            found = score(model, ids, precision=precision)
            if best is None or abs(found.saved - share) < abs(best.saved - share):
                best = found
            if agrees(best, share) or not found.saved > 0.0 or not share > 0.0:
                break
            skip = min(1.0, skip * share / found.saved)
            router.set_rate(1.0 - skip)
    finally:
        for routing, rate in zip(router.all_routings(), held, strict=True):
            routing.rate.copy_(rate)
    assert best is not None
    return best


@contextmanager
def _movable(routings: list[Routing]) -> Iterator[list[Tensor]]:
    """The thresholds as they are, put back at the end."""
    held = [routing.thresholds.value.clone() for routing in routings]
    try:
        yield held
    finally:
        for routing, value in zip(routings, held, strict=True):
            routing.thresholds.value.copy_(value)
            routing.seen = None


_Pass = tuple[Score, list[Tensor]]


def _scored(
    model: Any,
    ids: Tensor,
    offset: float,
    routings: list[Routing],
    held: list[Tensor],
    precision: str,
    movable: list[Tensor] | None = None,
) -> _Pass:
    """Score at an offset, with the margins (tokens, R) that each routing saw."""
    for index, (routing, value) in enumerate(zip(routings, held, strict=True)):
        step = torch.full_like(value, offset)
        routing.thresholds.value.copy_(
            value + (step if movable is None else step * movable[index].to(value.device))
        )
        routing.seen = []
    found = score(model, ids, precision=precision)
    margins = [
        torch.cat(routing.seen or [held[i].new_zeros(1, len(held[i]))]) for i, routing in enumerate(routings)
    ]
    return found, margins


def _next(
    model: Any,
    length: int,
    found: _Pass,
    offset: float,
    bracket: tuple[float, float],
    share: float,
    movable: list[Tensor],
    held: list[Tensor],
) -> float:
    """The offset at which the margins of the last pass would save what is wanted, within a bracket open at one end.

    The margins do not know of sinks, nor of states that move with the decisions below: what they say of the offset
    served is held against what was served.
    """

    def predicted(at: float) -> float:
        rates = torch.cat(
            [
                (margins > value + at * mask.to(value)).float().mean(dim=0)
                for margins, value, mask in zip(found[1], held, movable, strict=True)
            ]
        )
        return saved_share(model, rates, length)

    wanted = share + predicted(offset) - found[0].saved
    reach = (
        max(float((margins - value).abs().max()) for margins, value in zip(found[1], held, strict=True)) + 1.0
    )
    low, high = max(bracket[0], -reach), min(bracket[1], reach)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if predicted(middle) < wanted else (low, middle)
    return (low + high) / 2
