"""Thresholds set on held-out text in inference mode, so that the rate asked for is the rate served."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from layerroute.routing.budget import quantile_threshold
from layerroute.routing.module import Routing

SCOPES = ("site", "model")


@torch.no_grad()
def calibrate_thresholds(
    modules: Sequence[Routing], forward: Callable[[], None], *, scope: str = "site", rounds: int = 2
) -> None:
    """Set the thresholds of a model's routing modules to what serves their ``rate`` on held-out text.

    Args:
        modules: all routing modules of the model that have a learned router; others are left alone.
        forward: runs the model over the text, in inference mode.
        scope: ``site`` (default): each site at its own rate. ``model``: one threshold for all, at which their mean
            rate, weighted by what each site costs, is the mean of the rates asked for; sites then differ.
        rounds: of scope ``model``: a site's states depend on what is skipped below it, so that one pass is not
            enough where each layer has its own router. Scope ``site`` cuts each batch on its way up, and needs one.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")
    learned = [module for module in modules if module.router is not None]
    if not learned:
        return
    for _ in range(rounds if scope == "model" else 1):
        with _observed(learned, cutting=scope == "site"):
            forward()
            seen = [torch.cat(module.seen) for module in learned if module.seen]
        if len(seen) != len(learned):
            return  # no valid token
        for module, margin in zip(learned, seen, strict=True):
            _set_spread(module, margin)
        if scope == "site":
            for module, margin in zip(learned, seen, strict=True):
                everyone = margin.new_ones(1, len(margin), dtype=torch.bool)
                module.thresholds.value.copy_(quantile_threshold(margin.unsqueeze(0), everyone, module.rate))
        else:
            common = _common_threshold(learned, seen)
            for module in learned:
                module.thresholds.value.fill_(common)


@torch.no_grad()
def calibrate_spreads(modules: Sequence[Routing], forward: Callable[[], None]) -> None:
    """Set the spreads of margins, the unit in which ``serve: rate`` moves thresholds; thresholds stay as they are.

    ``calibrate_thresholds`` sets them too.

    Args:
        modules: all routing modules of the model; those without a learned router are left alone.
        forward: runs the model over text, in inference mode; a few thousand tokens are enough.
    """
    learned = [module for module in modules if module.router is not None]
    with _observed(learned, cutting=False):
        forward()
        for module in learned:
            if module.seen:
                _set_spread(module, torch.cat(module.seen))


def _set_spread(module: Routing, margin: Float[Tensor, "N R"]) -> None:
    if len(margin) > 1:
        module.thresholds.spread.copy_(margin.float().std(dim=0))


def _common_threshold(modules: Sequence[Routing], margins: Sequence[Float[Tensor, "N R"]]) -> float:
    """The threshold at which the cost-weighted mean rate over all sites is the rate asked for."""
    margin = torch.cat([part.float().cpu() for part in margins], dim=1).double()
    cost = torch.cat([(module.costs[:, -1] - module.costs[:, 0]).cpu() for module in modules]).double()
    rate = torch.cat([module.rate.cpu() for module in modules]).double()
    target = float((rate * cost).sum() / cost.sum())
    ordered, order = margin.flatten().sort(descending=True)
    weight = cost.expand_as(margin).flatten()[order]
    share = weight.cumsum(dim=0) / weight.sum()
    kept = int((share <= target + 1e-9).sum())
    if kept == 0:
        return float(ordered[0])
    if kept == len(ordered):
        return float(ordered[-1] - 1)
    return float((ordered[kept - 1] + ordered[kept]) / 2)


@contextmanager
def _observed(modules: Sequence[Routing], *, cutting: bool) -> Iterator[None]:
    for module in modules:
        module.cutting, module.seen = cutting, []
    try:
        yield
    finally:
        for module in modules:
            module.cutting, module.seen = False, None
