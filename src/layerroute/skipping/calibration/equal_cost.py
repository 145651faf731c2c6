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

from layerroute.outcomes import same_cost
from layerroute.precision import choose_precision
from layerroute.routing.module import Routing
from layerroute.routing.serving import held_within
from layerroute.skipping.calibration.arms import evaluate_arms, installed
from layerroute.skipping.calibration.calibrate import FittedArms, Stage, silent
from layerroute.skipping.calibration.heldout import Difference, Score, paired_bootstrap, saved_share, score
from layerroute.skipping.calibration.journal import Journal, kept
from layerroute.skipping.model import get_router

PASSES = 8
"""Forward passes over the text at most."""

EXACT = 0.0005
"""Shares this near are taken as they are."""

BEYOND = 0.002
"""Once a pass is near enough, the next one aims so far past the share, so that it lies between the two."""

MORE = 2
"""Passes at most that go into that."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A routed arm against another arm at the cost of the other, on the same windows.

    Attributes:
        served: the routed arm as it was moved to the other's share (see `serve_at`).
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
    return same_cost(score.saved, share)


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
    passes: int = PASSES,
    known: "list[_Pass] | None" = None,
) -> Score:
    """Score windows with all thresholds moved by one offset, until the share of saved FLOPs is ``share``.

    Once a pass is within half a point, which alone can be worth 0.02 nats, the rest is read off on the line between the
    next lower and the next higher pass. Loss is convex in the share as a rule, so that the line flatters nobody.

    A router that holds its rate (``serve: rate``) is asked for another rate instead. The offset is found between two
    that were served; the first steps are guided by margins. Sites whose decision does not depend on the token stay as
    they are, and routers that have nothing to move (controls) are scored once. The thresholds are put back.

    Args:
        model: with its router.
        share: of the decoder layers' forward FLOPs to save, on these very windows.
        precision: of the products, ``fp32`` or ``bf16``.
        passes: forward passes over the windows at most.
        known: passes of earlier calls with the same router and windows; new ones are added.

    Returns:
        The score at the share, or the nearest one found. Ask `agrees` whether it is near enough.
    """
    known = [] if known is None else known
    router = get_router(model)
    if held_within(router.config.serve) is not None:
        return _ask(model, ids, share, precision, passes, known)
    moved = [routing for routing in router.all_routings() if routing.router is not None]
    with _movable(moved) as held:
        if not known:
            known.append(_scored(model, ids, 0.0, moved, held, precision))
            passes -= 1
        movable = [margins.std(dim=0) > 0 for margins in known[0].margins]
        if not any(mask.any() for mask in movable):
            return known[0].score
        stride, more = 1.0, MORE
        while passes > 0 and not _settled(known, share):
            near = agrees(_nearest(known, share).score, share)
            if near and not more:
                break
            more -= near
            # A higher threshold sends fewer tokens to the expensive path, so that more is saved.
            low, high = _around(known, share)
            if low is not None and high is not None:
                # What was served at both ends knows of sinks, and of states that move with the decisions below.
                part = (share - _saved(low)) / max(_saved(high) - _saved(low), 1e-9)
                offset = low.offset + min(max(part, 0.1), 0.9) * (high.offset - low.offset)
            else:
                last = _nearest(known, share)
                told = _next(model, ids.shape[1], last, low, high, _aim(known, share), movable, held)
                # A step that fell short is followed by a longer one, so that the share is soon between two.
                offset = last.offset + (told - last.offset) * stride
                stride = 1.5
            if any(one.offset == offset for one in known):
                break  # what is served does not follow the offset here; another pass would serve the same
            known.append(_scored(model, ids, offset, moved, held, precision, movable))
            passes -= 1
    return _read_off(known, share)


def compare_arms(
    model: Any,
    calibration: FittedArms,
    heldout: Int[Tensor, "K T"],
    *,
    journal: Journal | None = None,
    stage: Stage = silent,
) -> tuple[dict[str, Score], dict[str, Matched | None]]:
    """Every arm on held-out windows, and the routed arm against each control at the control's cost.

    Returns:
        Scores as served (``dense`` is the model alone), and by control what `matched` says of the routed arm moved to
        its share.
    """
    scores = evaluate_arms(model, calibration, heldout, journal=journal, stage=stage)
    advance = stage("equal cost")
    precision = choose_precision(calibration.config.precision, model.device).name
    others = [name for name in scores if name not in ("dense", "routed")]
    with installed(model, calibration.arms["routed"], calibration.skip):
        against = match_all(
            model,
            heldout,
            {name: scores[name] for name in others},
            precision=precision,
            journal=journal,
            advance=advance,
        )
    return scores, against


def match_all(
    model: Any,
    ids: Int[Tensor, "N T"],
    others: dict[str, Score],
    *,
    precision: str = "fp32",
    journal: Journal | None = None,
    advance: Any = lambda share: None,
) -> dict[str, Matched | None]:
    """The routed model against each of several arms, each at that arm's share; each search knows the passes before."""
    notes = (journal or Journal()).step()
    passes: list[_Pass] = notes.recall() or []
    found: dict[str, Matched | None] = {}
    for name, other in others.items():
        found[name] = matched(serve_at(model, ids, other.saved, precision=precision, known=passes), other)
        notes.note(passes)
        advance(len(found) / len(others))
    return found


def _ask(model: Any, ids: Tensor, share: float, precision: str, passes: int, known: "list[_Pass]") -> Score:
    """Score windows under a router that holds its rate, asked for whatever saves ``share``; its rates are put back.

    What is saved is nearly in proportion to the share skipped, so that each pass asks in proportion. The offset of a
    pass is the share that was asked for.
    """
    router = get_router(model)
    held = [routing.rate.clone() for routing in router.all_routings()]
    skip = 1.0 - float(torch.cat(held).mean())
    more = MORE
    try:
        while passes > 0:
            if known:
                last = _nearest(known, share)
                near = agrees(last.score, share)
                done = _settled(known, share) or (near and not more)
                if done or not last.score.saved > 0.0 or not share > 0.0:
                    break
                more -= near
                skip = min(1.0, last.offset * _aim(known, share) / last.score.saved)
                router.set_rate(1.0 - skip)
            known.append(_Pass(offset=skip, score=score(model, ids, precision=precision), margins=[]))
            passes -= 1
    finally:
        for routing, rate in zip(router.all_routings(), held, strict=True):
            routing.rate.copy_(rate)
    return _read_off(known, share)


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


@kept
@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What was served at an offset, with the margins (tokens, R) that each routing saw."""

    offset: float
    score: Score
    margins: list[Tensor]


def _saved(one: _Pass) -> float:
    return one.score.saved


def _nearest(known: list[_Pass], share: float) -> _Pass:
    return min(known, key=lambda one: abs(one.score.saved - share))


def _around(known: list[_Pass], share: float) -> tuple[_Pass | None, _Pass | None]:
    """The next pass that saves less, and the next that saves as much or more."""
    low = max((one for one in known if one.score.saved < share), key=_saved, default=None)
    high = min((one for one in known if one.score.saved >= share), key=_saved, default=None)
    return low, high


def _settled(known: list[_Pass], share: float) -> bool:
    """Whether a pass is near enough, and what is left can be read off."""
    near = _nearest(known, share).score
    return agrees(near, share) and (abs(near.saved - share) <= EXACT or None not in _around(known, share))


def _aim(known: list[_Pass], share: float) -> float:
    """What the next pass is to save."""
    near = _nearest(known, share).score
    return share + math.copysign(BEYOND, share - near.saved) if agrees(near, share) else share


def _read_off(known: list[_Pass], share: float) -> Score:
    """The score at a share, on the line between two passes; the nearest where none agrees, or all are on one side."""
    near = _nearest(known, share).score
    low, high = _around(known, share)
    if not agrees(near, share) or low is None or high is None or abs(near.saved - share) <= EXACT:
        return near
    less, rest = low.score, high.score
    weight = (share - less.saved) / (rest.saved - less.saved)

    def between(one: Any, other: Any) -> Any:
        return one + weight * (other - one)

    return Score(
        losses=between(less.losses, rest.losses),
        skipped=between(less.skipped, rest.skipped),
        skipped_by_layer={
            layer: between(own, rest.skipped_by_layer[layer]) for layer, own in less.skipped_by_layer.items()
        },
        saved=share,
    )


def _scored(
    model: Any,
    ids: Tensor,
    offset: float,
    routings: list[Routing],
    held: list[Tensor],
    precision: str,
    movable: list[Tensor] | None = None,
) -> _Pass:
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
    return _Pass(offset=offset, score=found, margins=margins)


def _next(
    model: Any,
    length: int,
    last: _Pass,
    low: _Pass | None,
    high: _Pass | None,
    share: float,
    movable: list[Tensor],
    held: list[Tensor],
) -> float:
    """The offset at which the margins of a pass would save what is wanted, within a bracket open at one end.

    The margins do not know of sinks, nor of states that move with the decisions below: what they say of the offset
    served is held against what was served.
    """

    def predicted(at: float) -> float:
        rates = torch.cat(
            [
                (margins > value + at * mask.to(value)).float().mean(dim=0)
                for margins, value, mask in zip(last.margins, held, movable, strict=True)
            ]
        )
        return saved_share(model, rates, length)

    wanted = share + predicted(last.offset) - last.score.saved
    reach = (
        max(float((margins - value).abs().max()) for margins, value in zip(last.margins, held, strict=True))
        + 1.0
    )
    least = -reach if low is None else max(low.offset, -reach)
    most = reach if high is None else min(high.offset, reach)
    for _ in range(40):
        middle = (least + most) / 2
        least, most = (middle, most) if predicted(middle) < wanted else (least, middle)
    return (least + most) / 2
