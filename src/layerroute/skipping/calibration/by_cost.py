"""Rates by cost: the budget is shared out among layers by what skipping costs on the selection windows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from layerroute.skipping.calibration.allocation import REACH, allocate, cost_curve, static_rates
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.controls import Clock, Ranking
from layerroute.skipping.calibration.costs import measure_costs
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.sensitivity import cost_weights, probe

PROBE_RATE = 0.25
"""Share of layers that random skipping disturbs when sensitivity is measured."""


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """A routed policy and how it was chosen.

    Attributes:
        policy: the routed arm.
        rounds: of allocation: rates by layer and cross-entropy on the selection windows.
        chosen: index of the round whose policy was taken.
        also: by further budget, the share of tokens that skip by layer.
    """

    policy: Policy
    rounds: list[dict[str, Any]]
    chosen: int
    also: dict[float, dict[int, float]] = field(default_factory=dict)


def disturbance(ranking: Ranking) -> Policy:
    """Random skipping, with the skip paths of the full model."""
    return replace(ranking.start, chooser="random").with_rates(dict.fromkeys(ranking.layers, PROBE_RATE))


def probe_sensitivity(
    ranking: Ranking, statistics: Int[Tensor, "N T"], final: Float[Tensor, "n T D"], clock: Clock
) -> Float[Tensor, "n T"]:
    """How much the predictions of the ranking's windows mind a disturbance (`sensitivity.probe`)."""
    return probe(
        ranking.stack,
        disturbance(ranking),
        statistics[: len(final)],
        final,
        advance=clock("sensitivity of predictions"),
    )


def allocate_by_cost(
    ranking: Ranking,
    statistics: Int[Tensor, "N T"],
    selection: Int[Tensor, "M T"],
    config: CalibrationConfig,
    count: int,
    sensitivity: Float[Tensor, "n T"],
    clock: Clock,
) -> Allocated:
    """Fit under greedy pruning, share the budget out by the costs measured there, fit again; ``config.rounds`` times.

    Costs do not add up: a layer next to one that is skipped is cheaper to skip than the full model says. So rates start
    where greedy pruning is, which has felt that, and move as far as costs measured there can be believed.

    Args:
        count: of layers that greedy pruning takes out.
        sensitivity: of the tokens of the first statistics windows; these alone are fitted to.
    """
    stack, search, layers = ranking.stack, ranking.search, ranking.layers
    statistics = statistics[: len(sensitivity)]
    known = probe(stack, disturbance(ranking), search.ids, search.final)
    weights = cost_weights(ranking.costs, known[~ranking.start.sinks(search.ids)])
    removed = ranking.greedy(count, clock)

    def fit(rates: dict[int, float], name: str, *, everywhere: bool) -> Policy:
        return calibrate_in_order(
            stack,
            statistics,
            rates,
            config,
            sensitivity=sensitivity,
            weights=weights,
            fit_all=everywhere,
            advance=clock(name),
        )

    def share_out(budget: float, reach: float) -> dict[int, float]:
        return allocate(curves, budget, around=rates, reach=reach, least=config.min_share)

    def curves_under(policy: Policy, advance: Callable[[float], None]) -> dict[int, Tensor]:
        found, _ = measure_costs(stack, search, policy, advance=advance)
        return {layer: cost_curve(cost) for layer, cost in found.items()}

    rates = static_rates(layers, removed)
    pruned = fit(rates, "fits under greedy pruning", everywhere=True)
    curves = curves_under(pruned, clock("cost of each choice"))
    rounds: list[dict[str, Any]] = []
    policies: list[Policy] = []
    for turn in range(config.rounds):
        if turn:
            curves = curves_under(policies[-1], clock(f"cost of each choice, round {turn + 1}"))
        rates = share_out(config.budget, REACH / 2**turn)
        more = turn + 1 < config.rounds or bool(config.also)
        policies.append(fit(rates, f"fits under routing, round {turn + 1}", everywhere=more))
        states = replay(stack, policies[-1], stack.embed(selection), selection)
        rounds.append({"rates": rates, "loss": float(stack.losses(states, selection).mean())})
    chosen = min(range(len(rounds)), key=lambda index: rounds[index]["loss"])
    also = {budget: share_out(budget, REACH) for budget in config.also}
    return Allocated(policy=policies[chosen], rounds=rounds, chosen=chosen, also=also)
