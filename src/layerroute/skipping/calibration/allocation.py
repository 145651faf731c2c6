"""How the budget is shared out among layers: skip where the next token costs least."""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from layerroute.skipping.calibration.costs import LayerCosts
from layerroute.skipping.skip_config import SkipConfig

STEPS = 40
"""Shares of tokens at which a layer's cost curve is read."""

ATTENTION = 0.25
"""Odds of skipping attention against those of the MLP beside it."""

REACH = 0.5
"""How far a layer's rate may move from the one under which its costs were measured."""


Bounds = Mapping[int, tuple[int, int]]
"""By layer, the fewest and the most steps that it may take."""


def even_rates(skip: SkipConfig, budget: float) -> dict[int, float]:
    """The same share of the tokens at every site of one unit, of mean ``budget`` over all sites, by place.

    Attention saves less than an MLP and costs more: its odds of being skipped are ``ATTENTION`` times those of an MLP.
    """
    if len(skip.units) == 1:
        return dict.fromkeys(skip.places(), budget)
    odds = [ATTENTION if unit == "attention" else 1.0 for unit in skip.units]

    def shares(scale: float) -> list[float]:
        return [scale * own / (1 + scale * own) for own in odds]

    low, high = -60.0, 60.0
    for _ in range(100):
        middle = (low + high) / 2
        short = sum(shares(math.exp(middle))) < budget * len(odds)
        low, high = (middle, high) if short else (low, middle)
    return dict(zip(skip.places(), shares(math.exp(low)) * len(skip.layers or []), strict=True))


def static_rates(layers: Iterable[int], removed: Iterable[int]) -> dict[int, float]:
    """Rates of static pruning: all tokens skip the removed layers, and no other."""
    taken = set(removed)
    return {layer: float(layer in taken) for layer in layers}


def cost_curve(costs: LayerCosts) -> Float[Tensor, "steps"]:
    """Mean cost per token if the shares 0, 1/STEPS, ..., 1 of the tokens skip, those of lowest score first."""
    ordered = costs.cost[costs.score.argsort()].double()
    total = torch.cat([ordered.new_zeros(1), ordered.cumsum(dim=0)]) / ordered.shape[0]
    places = torch.linspace(0, ordered.shape[0], STEPS + 1, device=total.device).round().long()
    return total[places]


def convex_hull(curve: Float[Tensor, "steps"]) -> Float[Tensor, "steps"]:
    """The largest convex curve below one: what mixing two shares of skipping tokens would reach."""
    values = curve.tolist()
    kept = [0]
    for place in range(1, len(values)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            if (values[b] - values[a]) * (place - a) < (values[place] - values[a]) * (b - a):
                break
            kept.pop()
        kept.append(place)
    hull = list(values)
    for a, b in pairwise(kept):
        for place in range(a, b + 1):
            hull[place] = values[a] + (values[b] - values[a]) * (place - a) / (b - a)
    return torch.tensor(hull, dtype=curve.dtype)


def allocate(
    curves: Mapping[int, Float[Tensor, "steps"]],
    budget: float,
    *,
    around: Mapping[int, float] | None = None,
    reach: float = 1.0,
    least: float = 0.0,
) -> dict[int, float]:
    """Rates by layer, of mean ``budget``, that minimise the sum of costs.

    On convex curves taking the cheapest step of all layers, again and again, is optimal. With ``least`` it is not one
    convex problem but one for each set of layers that skip; sets are tried by settling the smallest share that is not
    allowed, as none or as ``least``, whichever costs less, until there is none.

    Args:
        curves: by layer (see ``cost_curve``); their hulls are used.
        budget: mean over layers of the share of tokens that skip.
        around, reach: no rate is to be farther than ``reach`` from that of ``around`` (default: any may be taken);
            where the budget cannot be served within it, ``reach`` is widened until it can.
        least: a layer is skipped by none, or by at least this share of the tokens: fewer save no time (default: any
            share). Where the whole budget is less than that of one layer, it is one layer's.
    """
    total = budget * len(curves) * STEPS
    while True:
        bounds = {layer: _bounds(None if around is None else around[layer], reach) for layer in curves}
        if _serves(bounds, total) or reach >= 1.0:
            break
        reach += 1 / STEPS
    floor = min(math.ceil(least * STEPS - 1e-9), int(total))
    taken, _ = _share_out(curves, total, bounds)
    while small := {layer: steps for layer, steps in taken.items() if 0.0 < steps < floor}:
        layer = min(small, key=lambda each: (small[each], each))
        settled = [{**bounds, layer: bound} for bound in ((0, 0), (floor, max(floor, bounds[layer][1])))]
        possible = [choice for choice in settled if _serves(choice, total)]
        if not possible:
            break
        bounds = min(possible, key=lambda choice: _share_out(curves, total, choice)[1])
        taken, _ = _share_out(curves, total, bounds)
    rates = {layer: steps / STEPS for layer, steps in taken.items()}
    return {layer: 0.0 if rate < 1e-9 else 1.0 if rate > 1 - 1e-9 else rate for layer, rate in rates.items()}


def _serves(bounds: Bounds, total: float) -> bool:
    return sum(low for low, _ in bounds.values()) <= total + 1e-9 and total <= 1e-9 + sum(
        high for _, high in bounds.values()
    )


def _share_out(
    curves: Mapping[int, Float[Tensor, "steps"]], total: float, bounds: Bounds
) -> tuple[dict[int, float], float]:
    """Steps by layer within bounds, and what they cost."""
    steps = [
        (float(slope), layer, index)
        for layer, curve in curves.items()
        for index, slope in enumerate(_slopes(curve, *bounds[layer]))
    ]
    # Slopes rise along a hull, but for round-off: the index keeps a layer's steps in order.
    steps.sort(key=lambda item: (item[0], item[1], item[2]))
    taken = {layer: float(low) for layer, (low, _) in bounds.items()}
    left = total - sum(taken.values())
    cost = sum(float(curves[layer][low]) for layer, (low, _) in bounds.items())
    for slope, layer, _ in steps:
        step = min(1.0, left)
        if step <= 1e-9:
            break
        taken[layer] += step
        cost += step * slope
        left -= step
    return taken, cost


def _bounds(rate: float | None, reach: float) -> tuple[int, int]:
    """The fewest and the most steps that a layer may take."""
    if rate is None:
        return 0, STEPS
    return max(0, round((rate - reach) * STEPS)), min(STEPS, round((rate + reach) * STEPS))


def _slopes(curve: Float[Tensor, "steps"], low: int, high: int) -> list[float]:
    """What each step from ``low`` to ``high`` costs, along the hull of that part."""
    return convex_hull(curve[low : high + 1]).diff().tolist() if high > low else []
