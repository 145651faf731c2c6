"""A routed model from a pretrained one without gradients, and the table that says what it is worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.precision import choose_precision
from layerroute.skipping.calibration.allocation import REACH, allocate, cost_curve, static_rates
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.controls import fit_controls, greedy_static
from layerroute.skipping.calibration.costs import Search, measure_costs
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.sensitivity import cost_weights, probe
from layerroute.skipping.calibration.stack import LayerStack
from layerroute.skipping.configuration import SkipConfig

PROBE_RATE = 0.25
"""Share of layers that random skipping disturbs when sensitivity is measured."""

CONTROLS = ("static_influence", "static_greedy", "random", "periodic", "early_exit")
"""What cannot be as clever as routing: see ``controls.fit_controls``."""

TABLE = ("static_influence", "static_greedy", "random")
"""The controls of the command's table."""

Stage = Callable[[str], Callable[[float], None]]
"""Given the name of a stage, what is told the share of it that is done."""


@dataclass(kw_only=True)
class Calibration:
    """What came out.

    Attributes:
        config: what was asked for.
        skip: configuration of the router.
        policy: the routed arm.
        static: removed layers by method (``influence``, ``greedy``).
        rounds: per round: mean divergence and cross-entropy on the selection windows, and rates by layer.
        chosen: index of the round whose policy was taken.
        arms: policies by name, the routed one among them.
        rates: of ``config.also``: by budget, the share of tokens that skip by layer.
        seconds: by stage.
    """

    config: CalibrationConfig
    skip: SkipConfig
    policy: Policy
    static: dict[str, tuple[int, ...]]
    rounds: list[dict[str, Any]]
    chosen: int
    arms: dict[str, Policy]
    rates: dict[float, dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class _Clock:
    """Seconds by stage, and progress."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.seconds = stage, dict[str, float]()
        self._name, self._since = "", time.perf_counter()

    def __call__(self, name: str) -> Callable[[float], None]:
        self.stop()
        self._name, self._since = name, time.perf_counter()
        return self.stage(name)

    def stop(self) -> None:
        if self._name:
            passed = time.perf_counter() - self._since
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + passed
        self._name = ""


def silent(_: str) -> Callable[[float], None]:
    """No progress."""
    return lambda share: None


@torch.inference_mode()
def calibrate(
    model: Any,
    config: CalibrationConfig,
    *,
    statistics: Int[Tensor, "N T"],
    selection: Int[Tensor, "M T"],
    controls: Sequence[str] = TABLE,
    stage: Stage = silent,
) -> Calibration:
    """Fit a router and the static and random controls, all in the same way.

    Args:
        model: a transformers causal LM without a router; it is left as it is.
        config: what to make.
        statistics: windows that the fits see.
        selection: windows on which rates and layers are chosen.
        controls: which of ``CONTROLS`` to fit beside it.
        stage: for progress.

    Returns:
        The policies; ``install`` puts one into the model.

    Raises:
        UserError: if the model cannot be opened at its layers, or layers are out of range.
    """
    clock = _Clock(stage)
    precision = choose_precision(config.precision, model.device).name
    stack = LayerStack(model, config.length, precision, config.unit)
    skip = config.skip_config(len(stack.layers))
    layers = skip.layers or []
    search = Search.of(stack, selection[: max(1, config.tokens_search // config.length)])
    none = dict.fromkeys(layers, 0.0)
    final: list[Tensor] = []
    start = calibrate_in_order(
        stack,
        statistics,
        none,
        config,
        fit_all=True,
        final=final,
        advance=clock("statistics of the full model"),
    )
    costs, _ = measure_costs(stack, search, start, advance=clock("cost of each layer"))
    chance = replace(start, chooser="random").with_rates(dict.fromkeys(layers, PROBE_RATE))
    sensitivity = probe(stack, chance, statistics, final.pop(), advance=clock("sensitivity of predictions"))
    known = probe(stack, chance, search.ids, search.final)[~start.sinks(search.ids)]
    weights = cost_weights(costs, known)
    count = max(1, round(config.budget * len(layers)))
    removed = tuple(
        sorted(greedy_static(stack, search, start, costs, count, clock("greedy choice of layers")))
    )

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

    def curves_under(policy: Policy, name: str) -> dict[int, Tensor]:
        found, _ = measure_costs(stack, search, policy, advance=clock(name))
        return {layer: cost_curve(cost) for layer, cost in found.items()}

    # Costs do not add up: a layer next to one that is skipped is cheaper to skip than the full model says. So rates
    # start where greedy pruning is, which has felt that, and move as far as costs measured there can be believed.
    rates = static_rates(layers, removed)
    pruned = fit(rates, "fits under greedy pruning", everywhere=True)
    curves = curves_under(pruned, "cost of each choice")
    rounds: list[dict[str, Any]] = []
    policies: list[Policy] = []
    for turn in range(config.rounds):
        if turn:
            curves = curves_under(policies[-1], f"cost of each choice, round {turn + 1}")
        rates = share_out(config.budget, REACH / 2**turn)
        more = turn + 1 < config.rounds or bool(config.also)
        policies.append(fit(rates, f"fits under routing, round {turn + 1}", everywhere=more))
        rounds.append({"rates": rates, **_selection_loss(stack, policies[-1], selection)})
    chosen = min(range(len(rounds)), key=lambda index: rounds[index]["loss"])
    arms, static = fit_controls(
        stack,
        statistics,
        controls,
        config,
        start=start,
        greedy=removed,
        sensitivity=sensitivity,
        clock=clock,
    )
    clock.stop()
    return Calibration(
        config=config,
        skip=skip,
        policy=policies[chosen],
        static=static,
        rates={budget: share_out(budget, REACH) for budget in config.also},
        rounds=rounds,
        chosen=chosen,
        arms={"routed": policies[chosen], **arms},
        seconds=clock.seconds,
    )


def _selection_loss(stack: LayerStack, policy: Policy, ids: Tensor) -> dict[str, float]:
    losses = stack.losses(replay(stack, policy, stack.embed(ids), ids), ids)
    return {"loss": float(losses.mean())}
