"""How the budget is shared out among layers: skip where the next token costs least."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from layerroute.skipping.calibration.costs import LayerCosts

STEPS = 40
"""Shares of tokens at which a layer's cost curve is read."""


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


def allocate(curves: Mapping[int, Float[Tensor, "steps"]], budget: float) -> dict[int, float]:
    """Rates by layer, of mean ``budget``, that minimise the sum of costs.

    On convex curves taking the cheapest step of all layers, again and again, is optimal.

    Args:
        curves: by layer (see ``cost_curve``); their hulls are used.
        budget: mean over layers of the share of tokens that skip.
    """
    steps = [
        (float(slope), layer, index)
        for layer, curve in curves.items()
        for index, slope in enumerate(convex_hull(curve).diff())
    ]
    # Slopes rise along a hull, but for round-off: the index keeps a layer's steps in order.
    steps.sort(key=lambda item: (item[0], item[1], item[2]))
    left = budget * len(curves)
    rates = dict.fromkeys(curves, 0.0)
    for _, layer, _ in steps:
        taken = min(1 / STEPS, left)
        if taken <= 1e-12:
            break
        rates[layer] = min(1.0, rates[layer] + taken)
        left -= taken
    return {layer: 0.0 if rate < 1e-9 else 1.0 if rate > 1 - 1e-9 else rate for layer, rate in rates.items()}
