"""How much per-token routing could win on a model, before anything is trained: oracle decisions against static ones."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.precision import choose_precision
from layerroute.skipping.calibration.allocation import REACH, allocate, cost_curve, static_rates
from layerroute.skipping.calibration.calibrate import Stage, silent
from layerroute.skipping.calibration.configuration import PRUNED, CalibrationConfig
from layerroute.skipping.calibration.controls import greedy_static
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.heldout import Difference, paired_bootstrap
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay, step
from layerroute.skipping.calibration.stack import LayerStack

BUDGETS = (0.12, 0.25, 0.4)
"""Shares of routed compute at which headroom is told."""

WORTH = 0.01
"""Nats below which a gap is not worth a router."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """One budget: cross-entropies in nats.

    Oracle and random serve ``skipped``, static the nearest number of layers.
    """

    budget: float
    skipped: float
    oracle: float
    static_skipped: float
    static: float
    random: float
    gap: Difference


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

    All arms have the same skip paths, fitted to all tokens of the full model. The oracle skips the tokens of lowest
    true influence at each layer, at rates that are shared out by cost; it is no upper bound (the loss is not its
    measure), but a predictor of influence can do no better than what it predicts.

    Args:
        model: without a router; it is left as it is.
        config: its budget is not used.
        statistics: windows for the skip paths.
        selection: windows on which costs are measured and the arms compared.
        budgets: shares of routed compute.
        stage: for progress.

    Returns:
        The full model's cross-entropy, and a row a budget.
    """
    precision = choose_precision(config.precision, model.device).name
    stack = LayerStack(model, config.length, precision, config.unit)
    layers = config.skip_config(len(stack.layers)).layers or []
    search = Search.of(stack, selection[: max(1, config.tokens_search // config.length)])
    embedded = stack.embed(selection)

    def losses(policy: Policy) -> Float[Tensor, "M"]:
        return stack.losses(replay(stack, policy, embedded, selection), selection).mean(dim=1)

    dense = float(losses(Policy()).mean())
    start = calibrate_in_order(
        stack,
        statistics,
        dict.fromkeys(layers, 0.0),
        config,
        fit_all=True,
        advance=stage("statistics of the full model"),
    )
    oracle = replace(start, chooser="oracle")
    costs, _ = measure_costs(stack, search, oracle, advance=stage("cost of each layer"))
    rows = []
    advance = stage("budgets")
    for index, budget in enumerate(budgets):
        count = max(1, round(budget * len(layers)))
        removed = greedy_static(stack, search, start, costs, count)
        pruned = static_rates(layers, removed)
        felt, _ = measure_costs(stack, search, oracle.with_rates(pruned))
        rates = allocate(
            {layer: cost_curve(cost) for layer, cost in felt.items()}, budget, around=pruned, reach=REACH
        )
        routed = losses(oracle.with_rates(rates))
        static = losses(start.with_rates(dict.fromkeys(removed, 1.0)))
        chance = replace(start, chooser="random").with_rates(dict.fromkeys(layers, budget))
        rows.append(
            Headroom(
                budget=budget,
                skipped=served(stack, oracle.with_rates(rates), embedded, selection),
                oracle=float(routed.mean()),
                static_skipped=served(stack, start.with_rates(pruned), embedded, selection),
                static=float(static.mean()),
                random=float(losses(chance).mean()),
                gap=paired_bootstrap(routed, static),
            )
        )
        advance((index + 1) / len(budgets))
    return dense, rows


def served(
    stack: LayerStack, policy: Policy, embedded: Float[Tensor, "M T D"], ids: Int[Tensor, "M T"]
) -> float:
    """Share of routed compute that a policy skips."""
    states, features, total = embedded, None, 0.0
    for layer in range(len(stack.layers)):
        if layer == policy.router_layer:
            features = states
        states, skips = step(stack, policy, layer, states, features, ids)
        total += float(skips.float().mean())
    return total / len(policy.sites)


def verdict(rows: list[Headroom], unit: str = "block") -> str:
    """One sentence: at which budgets oracle decisions win, and how much."""
    best = min(rows, key=lambda row: row.gap.mean)
    at = f"at {best.budget:.0%} skipped"
    interval = f"({best.gap.low:+.3f} to {best.gap.high:+.3f})"
    if best.gap.high < 0 and best.gap.mean < -WORTH:
        return (
            f"Per-token routing can win here: {at}, oracle decisions are {-best.gap.mean:.3f} nats {interval} "
            f"better than taking {PRUNED[unit]} out for all tokens, with the same skip paths."
        )
    return (
        f"Per-token routing has little to win here: even oracle decisions change the loss by only "
        f"{best.gap.mean:+.3f} nats {interval} against taking {PRUNED[unit]} out for all tokens, {at}."
    )
