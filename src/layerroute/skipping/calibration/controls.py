"""The controls of a calibration, fitted in the same way as the routed arm: routing must beat what cannot be clever."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor

from layerroute.skipping.calibration.allocation import static_rates
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.costs import LayerCosts, Search, greedy_layers
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.stack import LayerStack

Clock = Callable[[str], Callable[[float], None]]


def fit_controls(
    stack: LayerStack,
    statistics: Int[Tensor, "N T"],
    names: Sequence[str],
    config: CalibrationConfig,
    *,
    start: Policy,
    greedy: tuple[int, ...],
    sensitivity: Float[Tensor, "N T"],
    clock: Clock,
) -> tuple[dict[str, Policy], dict[str, tuple[int, ...]]]:
    """Policies of the controls, and the layers that static ones take out.

    - ``static_influence``: all tokens skip the layers of least mean block influence (Men et al. 2024).
    - ``static_greedy``: all tokens skip the layers whose removal, one after the other, costs least.
    - ``random``: every layer is skipped by a random share of the tokens.
    - ``periodic``: every layer is skipped at evenly spaced positions; skip paths are those of ``random``.
    - ``early_exit``: tokens whose prediction is expected to mind least leave first, and for good: the same score, of
      the state after ``router_layer`` layers, decides at all layers, against thresholds that let the share
      x^(1/budget - 1) skip at depth x.

    Args:
        start: skip paths and influences under the full model.
        greedy: the layers of ``greedy_static``.
        sensitivity: of the statistics tokens.
    """
    layers = list(start.sites)
    static: dict[str, tuple[int, ...]] = {}
    arms: dict[str, Policy] = {}
    if "static_influence" in names:
        by_influence = sorted(layers, key=lambda layer: start.sites[layer].influence)
        static["influence"] = tuple(sorted(by_influence[: len(greedy)]))
    if "static_greedy" in names:
        static["greedy"] = greedy
    for name, removed in static.items():
        rates = static_rates(layers, removed)
        advance = clock(f"fits of the static control ({name})")
        arms[f"static_{name}"] = calibrate_in_order(stack, statistics, rates, config, advance=advance)
    even = dict.fromkeys(layers, config.budget)
    if "random" in names or "periodic" in names:
        advance = clock("fits of the random control")
        chance = calibrate_in_order(stack, statistics, even, config, chooser="random", advance=advance)
        arms |= {name: replace(chance, chooser=name) for name in ("random", "periodic") if name in names}
    if "early_exit" in names:
        arms["early_exit"] = calibrate_in_order(
            stack,
            statistics,
            exit_rates(layers, config.budget),
            replace(config, granularity="token", also=[]),
            sensitivity=sensitivity,
            weights=dict.fromkeys(layers, (0.0, 1.0)),
            advance=clock("fits of the early exit"),
        )
    return arms, static


def exit_rates(layers: Sequence[int], budget: float) -> dict[int, float]:
    """The share of tokens that have left by each layer: x^(1/budget - 1) at depth x, of mean ``budget``."""
    power = 1 / budget - 1
    shares = [((index + 0.5) / len(layers)) ** power for index in range(len(layers))]
    mean = sum(shares) / len(shares)  # the sum over layers is not quite the integral
    return {layer: min(1.0, share * budget / mean) for layer, share in zip(layers, shares, strict=True)}


def greedy_static(
    stack: LayerStack,
    search: Search,
    start: Policy,
    costs: dict[int, LayerCosts],
    count: int,
    advance: Callable[[float], None] = lambda share: None,
) -> tuple[int, ...]:
    """The layers that greedy pruning takes out, in that order, with the skip paths of ``start`` in their place."""
    inputs: list[Tensor] = []
    replay(stack, Policy(), search.embedded, search.ids, keep=inputs)
    counted = ~start.sinks(search.ids)
    calls = 0

    def divergence(removed: tuple[int, ...]) -> float:
        nonlocal calls
        calls += 1
        advance(1 - 1 / (1 + calls / (3 * count)))
        first = min(removed)  # below it the model is the full one
        policy = start.with_rates(dict.fromkeys(removed, 1.0))
        features = None if start.router_layer is None else inputs[start.router_layer]
        final = replay(stack, policy, inputs[first], search.ids, first=first, features=features)
        return float(search.divergence(stack, final)[counted].mean())

    return greedy_layers(divergence, {layer: cost.total for layer, cost in costs.items()}, count)
