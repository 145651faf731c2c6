"""Calibrated policies as routers of a model: what is saved, and what the table is measured with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from layerroute.routing.module import Routing
from layerroute.skipping.calibration.in_order import Policy
from layerroute.skipping.configuration import SkipConfig
from layerroute.skipping.model import add_router, get_router, remove_router

ALWAYS = 10.0
"""Logit of a site at which all tokens take the same path: certain to 1 in 20,000, and still trainable."""


def install(model: Any, policy: Policy, config: SkipConfig, *, adapters: bool = True) -> Any:
    """Add a router that decides as the policy does; returns the model.

    Args:
        model: without a router.
        policy: its sites are the layers of ``config`` (in any order).
        config: with its layers spelt out.
        adapters: False: tokens that skip keep their state.
    """
    if not adapters:
        config = replace(config, skip_path="identity")
    if policy.chooser == "random":
        # One router for all layers: routers of single layers would draw the same for each of them.
        reads = min(config.router_layer, *(config.layers or []))
        drawn = replace(config.routing, control="random", control_seed=policy.seed)
        config = replace(config, routing=drawn, granularity="token", router_layer=reads)
    elif policy.chooser != "predicted":
        raise ValueError(f"decisions that are {policy.chooser} cannot be made by a router")
    add_router(model, config)
    router = get_router(model)
    layers = config.layers or []
    if adapters:
        for layer in layers:
            path, fit = router.skip_path(layer, "block"), policy.sites[layer].skip
            assert path is not None
            path.set(fit.mean, fit.down, fit.up, fit.bias)
    routings = router.all_routings()
    for index, layer in enumerate(layers):
        routing, row = (routings[index], 0) if config.granularity == "per_layer" else (routings[0], index)
        _set_site(routing, row, policy, layer)
    model.eval()
    return model


@torch.no_grad()
def _set_site(routing: Routing, row: int, policy: Policy, layer: int) -> None:
    site = policy.sites[layer]
    if routing.router is None:
        routing.rate[row] = 1.0 - site.rate
        return
    linear = routing.router.linears()[-1]
    linear.weight[row] = 0.0
    if site.rate <= 0.0:
        linear.bias[row] = ALWAYS
    elif site.rate >= 1.0:
        linear.bias[row] = -ALWAYS
    else:
        assert site.predictor is not None
        # The cut is part of the bias, so that a router whose thresholds are 0 serves the budget.
        linear.weight[row] = site.predictor.weight
        linear.bias[row] = site.predictor.bias - site.predictor.threshold


@contextmanager
def installed(
    model: nn.Module, policy: Policy, config: SkipConfig, *, adapters: bool = True
) -> Iterator[Any]:
    """``install`` for the length of a context."""
    yield install(model, policy, config, adapters=adapters)
    remove_router(model)
