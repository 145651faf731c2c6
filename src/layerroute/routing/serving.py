"""Holding the rate where a router serves, sequence by sequence, whatever the text.

A threshold that was set on one kind of text serves another rate on the next. Here each token's thresholds depend on
what the earlier tokens of its own sequence took. Let e be the expensive compute that they saved beyond what was asked,
in tokens of the whole model (negative where they spent too much), and x = e / slack. All margins of the token are then
raised by x³ (1 + (x / 1.2)⁸) spreads: little within the slack, where decisions are nearly free; as much as it takes at
twice the slack, so that margins eight spreads off, or spreads never measured, are held too. The slack is half of what
is tolerated: 1 % of 128 tokens, half a percent of 512, a third of a percent in the long run; or so many times that, for
what a tight hold forbids are runs of easy and of hard tokens, and it costs the more the tighter it is.

A module that decides early in a model of many counts what it and those below it took, against the slack of all: it is
nearly free, and those above make up for it. Holding each to the slack of its own sites cost 0.06 nats a token more.

It is feedback token by token and not by blocks: a block decides blindly, so that a site whose margins are all alike
errs by a block, and noise by its square root. The loop runs over plain numbers on the host; that costs less than a few
small tensor operations for each block of eight tokens unless there are many rows.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.errors import UserError, nearest

SERVES = ("threshold", "rate")
TOLERANCE = 0.01
"""How far a sequence of 512 tokens may be from the rate asked for, where ``serve`` gives no other share."""
_GRAIN = 1 << 16
"""Costs are counted in whole parts of the first module's mean cost: sums are then exact in any order and chunking."""


def held_within(serve: str, key: str = "serve") -> float | None:
    """How far the rate of a sequence of 512 tokens may be from the one asked for; None by ``threshold``.

    A share: ``rate:0.05`` tolerates five points, and twice as many at 128 tokens; ``rate`` tolerates 0.01.

    Raises:
        UserError: naming ``key``, for another word, or a share that is not from 0.01 to 0.5.
    """
    word, colon, share = str(serve).partition(":")
    if word not in SERVES or (colon and word != "rate"):
        raise UserError(f"{key}: {serve!r} is not known.{nearest(str(serve), SERVES)}")
    if not colon:
        return None if word == "threshold" else TOLERANCE
    try:
        within = float(share)
    except ValueError:
        within = math.nan
    if not TOLERANCE <= within <= 0.5:
        raise UserError(
            f"{key}: {serve!r} is no share from {TOLERANCE} to 0.5; rate:0.05 tolerates five points"
        )
    return within


def check_serve(serve: str, key: str, *, obstacle: str | None = None) -> None:
    """Refuse a word for ``serve`` that is not known, or holding the rate where there is an ``obstacle``.

    Raises:
        UserError: naming ``key``.
    """
    if held_within(serve, key) is not None and obstacle is not None:
        raise UserError(f"{key}: {serve} is not possible: {obstacle}; use threshold")


@dataclass(kw_only=True)
class Served:
    """The tokens of one inference call, for the routing modules that hold their rate in it.

    Modules decide in the order of their sites. Each is held to the mean over its own sites and those before it, so that
    it makes up for what they took of *earlier* tokens.

    Attributes:
        within: see `held_within`.
        begins: tokens that begin a packed document, or None.
        always: tokens that take the expensive path whatever is decided, or None.
        memory: tensors that follow the rows of the cache (``row_state``), or None without a cache.
        past: tokens in the cache, padding among them.
    """

    within: float = TOLERANCE
    begins: Bool[Tensor, "B T"] | None = None
    always: Bool[Tensor, "B T"] | None = None
    memory: dict[str, Tensor] | None = None
    past: int = 0
    _unit: float = 0.0
    _weight: int = 0
    _asked: float = 0.0
    _saved: Any = field(default=0, repr=False)

    @torch.no_grad()
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def choose(
        self,
        name: str,
        margin: Float[Tensor, "B T R"],
        valid: Bool[Tensor, "B T"],
        *,
        threshold: Float[Tensor, "R"],
        spread: Float[Tensor, "R"],
        rate: Float[Tensor, "R"],
        cost: Float[Tensor, "R"],
        sites: int,
    ) -> Bool[Tensor, "B T R"]:
        """Which tokens take the expensive path at the R sites of one module.

        Args:
            name: of the module, the same in each call.
            margin: logit of the expensive path less the best of the others.
            valid: False at padding, which is not counted and decides by threshold.
            threshold: by site.
            spread: by site, of its margins; sites of spread 0 are never moved.
            rate: asked, by site; sites of rate 0 or 1 are never moved.
            cost: of the expensive path beyond the cheapest, by site.
            sites: of all modules.
        """
        device, valid = margin.device, valid.cpu()
        margin, threshold, spread, rate, cost = (
            value.detach().double().cpu() for value in (margin, threshold, spread, rate, cost)
        )
        self._unit = self._unit or float(cost.mean())
        weight = (cost * (_GRAIN / self._unit)).round().long()
        self._weight += int(weight.sum())
        self._asked += float((weight * (1 - rate)).sum())
        movable = (rate > 0) & (rate < 1) & (spread > 0)
        score = (margin - threshold) / torch.where(movable, spread, 1.0)
        score = torch.where(movable, score, torch.where(score > 0, torch.inf, -torch.inf))
        if self.always is not None:
            score = score.masked_fill(self.always.cpu().unsqueeze(-1), torch.inf)
        ordered, order = score.sort(dim=-1)
        below = torch.zeros_like(valid, dtype=torch.long) + self._saved
        saved = F.pad(weight[order].cumsum(dim=-1), (1, 0)) + below.unsqueeze(-1)
        before = self._recall(name, valid.shape[0])
        cut = torch.zeros_like(valid, dtype=torch.float64)
        if bool(movable.any()):
            cut = cuts(
                ordered,
                saved,
                valid,
                None if self.begins is None else self.begins.cpu(),
                before[:, -1] if before.shape[1] else before.new_zeros(valid.shape[0], 2),
                asked=self._asked / self._weight,
                unit=self._weight,
                whole=max(self._weight, sites * _GRAIN),
                loose=self.within / TOLERANCE,
            )
        expensive = score > cut.unsqueeze(-1)
        self._saved = below + (~expensive * weight).sum(dim=-1)
        self._remember(name, before, valid)
        return expensive.to(device)

    def _recall(self, name: str, batch: int) -> Int[Tensor, "B S 2"]:
        """What was saved, and how many tokens were counted, up to each token of the past.

        The record is cut where the cache was cropped, and level over tokens that passed without a decision.
        """
        empty = torch.zeros(batch, 0, 2, dtype=torch.long)
        held = empty if self.memory is None else self.memory.get(name, empty)[:, : self.past]
        missing = self.past - held.shape[1]
        if missing <= 0 or self.memory is None:
            return held
        last = held[:, -1:] if held.shape[1] else torch.zeros(batch, 1, 2, dtype=torch.long)
        return torch.cat([held, last.expand(-1, missing, -1)], dim=1)

    def _remember(self, name: str, before: Int[Tensor, "B S 2"], valid: Bool[Tensor, "B T"]) -> None:
        if self.memory is None:
            return
        now = torch.stack([self._saved * valid, valid.long()], dim=-1).cumsum(dim=1)
        if before.shape[1]:
            now = now + before[:, -1:]
        self.memory[name] = torch.cat([before, now], dim=1)


def cuts(
    ordered: Float[Tensor, "B T R"],
    saved: Int[Tensor, "B T N"],
    valid: Bool[Tensor, "B T"],
    begins: Bool[Tensor, "B T"] | None,
    before: Int[Tensor, "B 2"],
    *,
    asked: float,
    unit: int,
    whole: int,
    loose: float = 1.0,
) -> Float[Tensor, "B T"]:
    """The score that a site must exceed to take the expensive path, token by token.

    Args:
        ordered: scores of each token's sites (margin less threshold, in spreads), rising.
        saved: (B, T, R + 1) what a token saves if so many of the lowest take the cheap path; rising.
        valid: tokens that count.
        begins: tokens at which the count begins anew, or None.
        before: what the row's earlier tokens saved, and how many they are.
        asked: share to be saved.
        unit: what a token can save.
        whole: what a token can save at the sites of all modules.
        loose: how many times the slack.
    """
    slack = whole * loose
    batch, time, sites = ordered.shape
    scores, savings = _numbers(ordered), _numbers(saved)
    counted = valid.flatten().tolist()
    fresh: Sequence[bool] | None = None if begins is None else begins.flatten().tolist()
    out = [0.0] * (batch * time)
    token = 0
    for row in before.tolist():
        total, count = row
        for _ in range(time):
            if fresh is not None and fresh[token]:
                total = count = 0
            if counted[token]:
                x = (total - asked * unit * count) / slack / max(1.28, 0.853 + count / 300.0)
                square = x * x
                out[token] = cut = -x * square * (1.0 + (square / 1.44) ** 4)
                first = token * sites
                cheap = bisect_right(scores, cut, first, first + sites) - first
                total += savings[first + token + cheap]
                count += 1
            token += 1
    return torch.tensor(out, dtype=torch.float64).view(batch, time)


def _numbers(values: Tensor) -> memoryview:
    """A flat view whose items are Python numbers."""
    return values.contiguous().flatten().numpy().data
