"""Calibrated policies as routers of a model: what is saved, and what the table is measured with."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from layerroute.precision import autocast, choose_precision
from layerroute.routing.held_out import calibrate_spreads, calibrate_thresholds
from layerroute.routing.module import Routing
from layerroute.skipping.calibration.calibrate import FittedArms, Stage, silent
from layerroute.skipping.calibration.heldout import Score, score
from layerroute.skipping.calibration.in_order import Policy, Site
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.calibration.stack import CHUNK_TOKENS
from layerroute.skipping.layerwise import layer_by_layer
from layerroute.skipping.model import add_router, get_router, remove_router
from layerroute.skipping.skip_config import SkipConfig, layer_and_unit

ALWAYS = 10.0
"""Logit of a site at which all tokens take the same path: certain to 1 in 20,000, and still trainable."""

SPREAD_TOKENS = 4096
"""Tokens on which the spreads of margins are measured where thresholds need no pass over the text."""


def install(
    model: Any,
    policy: Policy,
    config: SkipConfig,
    *,
    adapters: bool = True,
    budgets: dict[str, list[float]] | None = None,
) -> Any:
    """Add a router that decides as the policy does; returns the model.

    The routed arm and the early exit become learned routers, all other arms the controls that they are.

    Args:
        model: without a router.
        policy: its sites are those of ``config`` (in any order).
        config: with its layers spelt out.
        adapters: False: tokens that skip keep their state.
        budgets: of the routed arm: shares that run by budget and site. Default: the policy's own.
    """
    several = budgets is not None and len(budgets) > 1
    config = _arm_config(policy, replace(config, unit=policy.unit), learned=several)
    predictors = [site.predictor for site in policy.sites.values() if site.predictor is not None]
    if all(predictor.hidden is None for predictor in predictors):
        config = replace(config, routing=replace(config.routing, router="linear", widths=None))
    if not adapters:
        config = replace(config, skip_path="identity")
    if budgets is not None:
        config = replace(config, budgets=budgets)
    add_router(model, config)
    with _or_removed(model):
        router = get_router(model)
        rows = [(routing, row) for routing in router.all_routings() for row in range(len(routing.sites))]
        for name, place, (routing, row) in zip(config.sites(), config.places(), rows, strict=True):
            site = policy.sites[place]
            if adapters:
                path, fit = router.skip_path(*layer_and_unit(name)), site.skip
                assert path is not None
                path.set(fit.mean, fit.down, fit.up, fit.bias)
            if routing.router is not None:
                _set_site(routing, row, site, cut=not several)
    model.eval()
    return model


@contextmanager
def _or_removed(model: Any) -> Iterator[None]:
    """A router that is not set in the end (a pass fails, Ctrl-C) does not stay on the model."""
    try:
        yield
    except BaseException:
        remove_router(model)
        raise


def _arm_config(policy: Policy, config: SkipConfig, *, learned: bool) -> SkipConfig:
    running = [1.0 - policy.sites[place].rate for place in config.places()]
    control: str | None = None
    if policy.chooser in ("random", "periodic"):
        control = policy.chooser
    elif policy.chooser != "predicted":
        raise ValueError(f"decisions that are {policy.chooser} cannot be made by a router")
    elif not learned and all(rate in (0.0, 1.0) for rate in running):
        control = "static"
    if control is None:
        if policy.router_layer is not None:
            granularity = "token" if policy.prefix_tokens is None else "sequence"
            config = replace(config, granularity=granularity, history=0, router_layer=policy.router_layer)
        return replace(config, budgets={f"{config.budget:g}": running})
    kept = [index for index, rate in enumerate(running) if rate == 1.0] if control == "static" else None
    routing = replace(
        config.routing, control=control, control_seed=policy.seed, control_sites=kept, budget="none"
    )
    return replace(
        config,
        routing=routing,
        granularity="token",
        history=0,
        router_layer=min(config.router_layer, *(config.layers or [])),
        serve="threshold",
    )


@torch.no_grad()
def _set_site(routing: Routing, row: int, site: Site, *, cut: bool) -> None:
    """One site's row of the router; with ``cut`` its threshold is part of the bias, so that a threshold of 0 serves."""
    assert routing.router is not None
    *below, linear = routing.router.linears()
    linear.weight[row] = 0.0
    predictor = site.predictor
    if predictor is not None and predictor.hidden is not None:
        (first,) = below
        first.weight.copy_(predictor.hidden.weight)
        first.bias.copy_(predictor.hidden.bias)
    if predictor is None or (cut and not math.isfinite(predictor.threshold)):
        # All tokens take one path (but for the first ones, which always run: they alone may be what rate leaves).
        everyone = site.rate >= 1.0 or (predictor is not None and predictor.threshold > 0)
        linear.bias[row] = -ALWAYS if everyone else ALWAYS
        return
    linear.weight[row] = predictor.weight
    linear.bias[row] = predictor.bias - (predictor.threshold if cut else 0.0)


def install_for_budgets(model: Any, calibration: FittedArms, statistics: Int[Tensor, "N T"]) -> Any:
    """Add the routed arm's router, with a table of all its budgets; returns the model.

    Skip paths and predictors are those of the main budget; at the others the sites' rates are their own, and the
    thresholds are quantiles over the statistics windows, of states that routing at this budget produces.
    """
    config, policy = calibration.skip, calibration.policy
    by_budget = {calibration.config.budget: policy.rates(), **calibration.rates}
    table = {
        f"{budget:g}": [1.0 - rates[place] for place in config.places()]
        for budget, rates in sorted(by_budget.items())
    }
    install(model, policy, config, budgets=table)
    router = get_router(model)
    precision = choose_precision(calibration.config.precision, model.device).name
    step = max(1, CHUNK_TOKENS // statistics.shape[1])

    def read(part: Int[Tensor, "n T"]) -> None:
        with autocast(precision, part.device):
            model(input_ids=part, use_cache=False, logits_to_keep=1)

    def forward(windows: Int[Tensor, "N T"] = statistics) -> None:
        layer_by_layer(model, read, windows.split(step))

    with _or_removed(model):
        if not calibration.rates:
            few = max(1, SPREAD_TOKENS // statistics.shape[1])
            calibrate_spreads(router.all_routings(), lambda: forward(statistics[:few]))
            return model
        for budget in map(float, table):
            router.set_budget(budget)
            calibrate_thresholds(router.all_routings(), forward)
            router.store_thresholds()
        router.set_budget(calibration.config.budget)
    return model


@contextmanager
def installed(
    model: nn.Module, policy: Policy, config: SkipConfig, *, adapters: bool = True
) -> Iterator[Any]:
    """``install`` for the length of a context."""
    made = install(model, policy, config, adapters=adapters)
    try:
        yield made
    finally:
        remove_router(model)


def evaluate_arms(
    model: Any,
    calibration: FittedArms,
    heldout: Int[Tensor, "K T"],
    *,
    journal: Journal | None = None,
    stage: Stage = silent,
) -> dict[str, Score]:
    """Every arm, as a router of the model itself, on held-out windows; ``dense`` is the model alone."""
    advance, journal = stage("held-out text"), journal or Journal()
    precision = choose_precision(calibration.config.precision, model.device).name
    judge = partial(journal.once, lambda: score(model, heldout, precision=precision))
    scores = {"dense": judge()}
    total = len(calibration.arms) + 1
    for name, policy in calibration.arms.items():
        with installed(model, policy, calibration.skip):
            scores[name] = judge()
        advance(len(scores) / total)
    return scores


def score_budgets(
    model: Any,
    calibration: FittedArms,
    statistics: Int[Tensor, "N T"],
    heldout: Int[Tensor, "K T"],
    *,
    journal: Journal | None = None,
    stage: Stage = silent,
) -> dict[float, Score]:
    """The routed arm on held-out windows at each of its further budgets, as its folder serves them."""
    if not calibration.config.also:
        return {}
    advance, journal = stage("further budgets"), journal or Journal()
    precision = choose_precision(calibration.config.precision, model.device).name
    scores: dict[float, Score] = {}
    install_for_budgets(model, calibration, statistics)
    try:
        for budget in calibration.config.also:
            get_router(model).set_budget(budget)
            scores[budget] = journal.once(lambda: score(model, heldout, precision=precision))
            advance(len(scores) / len(calibration.config.also))
    finally:
        remove_router(model)
    return scores
