"""How much per-token routing could win on a model, before anything is trained: known influence against pruning."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.errors import UserError
from layerroute.precision import choose_precision
from layerroute.skipping.calibration.allocation import REACH, allocate, cost_curve, even_rates, static_rates
from layerroute.skipping.calibration.calibrate import Stage, silent
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.controls import greedy_static
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay, step
from layerroute.skipping.calibration.stack import LayerStack
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.flops import skip_flops

BUDGETS = (0.12, 0.25, 0.4)
"""Shares of routed compute at which headroom is told."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """One way to skip, as it came out on the selection windows.

    Attributes:
        skipped: share of routed compute that was skipped.
        executed: forward FLOPs by formula, as a share of the plain model's; None for families without one.
        loss: cross-entropy in nats.
        window_losses: the same of each window.
    """

    skipped: float
    executed: float | None
    loss: float
    window_losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """One budget.

    Attributes:
        budget: share of routed compute asked for.
        influence: tokens that skip by their true influence at each layer.
        static: greedy pruning of the nearest numbers of layers, among them those whose FLOPs are next to ``influence``.
        random: chance.
    """

    budget: float
    influence: Served
    static: list[Served]
    random: Served


@torch.inference_mode()
def headroom(
    model: Any,
    config: CalibrationConfig,
    *,
    statistics: Int[Tensor, "N T"],
    selection: Int[Tensor, "M T"],
    budgets: tuple[float, ...] = BUDGETS,
    stage: Stage = silent,
) -> tuple[float, list[Headroom]]:
    """Decide with what only the skipped layer knows, its own output, and see what that is worth.

    All arms have the same skip paths, fitted to all tokens of the full model. By influence, the tokens skip at each
    layer whose update is smallest, at rates that are shared out by cost. That is no upper bound (the loss is not its
    measure), but a predictor of influence can do no better than what it predicts.

    Args:
        model: without a router; it is left as it is.
        config: its budget is not used.
        statistics: windows for the skip paths.
        selection: windows on which costs are measured and the arms compared.
        budgets: shares of routed compute.
        stage: for progress.

    Returns:
        The full model's cross-entropy, and a row a budget. What they say: ``layerroute.lab.headroom``.

    Raises:
        UserError: a single window, which has no interval.
    """
    if len(selection) < 2:
        raise UserError(
            f"headroom has {len(selection)} window of {config.length} tokens to judge on; give two or more"
        )
    precision = choose_precision(config.precision, model.device).name
    stack = LayerStack(model, config.length, precision, config.unit)
    skip, length = config.skip_config(len(stack.layers)), selection.shape[1]
    places = skip.places()
    search = Search.of(stack, selection[: max(1, config.tokens_search // config.length)])
    embedded = stack.embed(selection)

    known = model.config.get_text_config().model_type in FAMILIES
    flops = skip_flops(model.config, skip, length) if known else None

    def serve(policy: Policy) -> Served:
        final, shares = replay_counted(stack, policy, embedded, selection)
        losses = stack.losses(final, selection).mean(dim=1)
        rates = [1.0 - shares[place] for place in places]
        return Served(
            skipped=sum(shares.values()) / len(shares),
            executed=None
            if flops is None
            else flops.sparse_per_token(rates, evenly=True) / flops.base_per_token,
            loss=float(losses.mean()),
            window_losses=losses.double().tolist(),
        )

    dense = float(stack.losses(replay(stack, Policy(), embedded, selection), selection).mean())
    start = calibrate_in_order(
        stack,
        statistics,
        dict.fromkeys(places, 0.0),
        config,
        fit_all=True,
        advance=stage("statistics of the full model"),
    )
    by_influence = replace(start, chooser="oracle")
    costs, _ = measure_costs(stack, search, by_influence, advance=stage("cost of each layer"))
    counts = [max(1, round(budget * len(places))) for budget in budgets]
    most = min(len(places), max(counts) + 1)
    removed = greedy_static(stack, search, start, costs, most, stage("greedy choice of layers"))
    rows, pruned = [], {0: serve(start.with_rates({}))}
    advance = stage("budgets")
    for index, (budget, count) in enumerate(zip(budgets, counts, strict=True)):
        around = static_rates(places, removed[:count])
        felt, _ = measure_costs(stack, search, by_influence.with_rates(around))
        rates = allocate(
            {place: cost_curve(cost) for place, cost in felt.items()}, budget, around=around, reach=REACH
        )
        for number in range(max(0, count - 2), min(most, count + 1) + 1):
            if number not in pruned:
                pruned[number] = serve(start.with_rates(dict.fromkeys(removed[:number], 1.0)))
        rows.append(
            Headroom(
                budget=budget,
                influence=serve(by_influence.with_rates(rates)),
                static=[arm for number, arm in pruned.items() if count - 2 <= number <= count + 1],
                random=serve(replace(start, chooser="random").with_rates(even_rates(skip, budget))),
            )
        )
        advance((index + 1) / len(budgets))
    return dense, rows


def replay_counted(
    stack: LayerStack, policy: Policy, states: Float[Tensor, "M T D"], ids: Int[Tensor, "M T"]
) -> tuple[Float[Tensor, "M T D"], dict[int, float]]:
    """The output of the last layer under a policy, and the share of tokens that skipped each of its sites."""
    features, shares = None, {}
    for place in range(stack.depth):
        states, features, skips = step(stack, policy, place, states, features, ids)
        if place in policy.sites:
            shares[place] = float(skips.float().mean())
    return states, shares
