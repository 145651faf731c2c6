"""The controls of a calibration, fitted in the same way as the routed arm: routing must beat what cannot be clever."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float, Int
from torch import Tensor

from layerroute.skipping.calibration.allocation import static_rates
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.costs import LayerCosts, Search, greedy_layers, measure_costs
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.stack import FullDepth, LayerStack

Clock = Callable[[str], Callable[[float], None]]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What whole units are worth to the full model: the ground that static pruning stands on.

    Attributes:
        stack: the model, opened at the unit.
        search: windows on which one layer at a time is taken out.
        start: skip paths and influences under the full model.
        costs: of skipping at one layer alone.
        taken: what `greedy` has chosen, by count.
    """

    stack: LayerStack
    search: Search
    start: Policy
    costs: dict[int, LayerCosts]
    taken: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(
        stack: LayerStack,
        statistics: Int[Tensor, "N T"],
        selection: Int[Tensor, "M T"],
        config: CalibrationConfig,
        *,
        clock: Clock,
        final: list[Tensor] | None = None,
    ) -> "Ranking":
        """Run the full model on some of the statistics windows; ``final`` gets the output of its last layer."""
        places = config.skip_config(len(stack.layers)).places()
        few = selection[: max(1, config.tokens_search // config.length)]
        search = Search.of(stack, few, advance=clock(f"full model ({stack.unit})"))
        part = statistics[: max(1, config.tokens_ranking // config.length)]
        start = calibrate_in_order(
            stack,
            part,
            dict.fromkeys(places, 0.0),
            config,
            fit_all=True,
            final=final,
            advance=clock(f"statistics of the full model ({stack.unit})"),
        )
        costs, _ = measure_costs(stack, search, start, advance=clock(f"cost of each layer ({stack.unit})"))
        return Ranking(stack=stack, search=search, start=start, costs=costs)

    @property
    def layers(self) -> list[int]:
        """Those that may be skipped."""
        return list(self.start.sites)

    def least_influence(self, count: int) -> tuple[int, ...]:
        """So many layers of least mean influence."""
        by_influence = sorted(self.layers, key=lambda layer: self.start.sites[layer].influence)
        return tuple(sorted(by_influence[:count]))

    def greedy(self, count: int, clock: Clock) -> tuple[int, ...]:
        """So many layers whose removal, one after the other, costs least, in that order; chosen once."""
        if count not in self.taken:
            advance = clock(f"greedy choice of layers ({self.stack.unit})")
            self.taken[count] = greedy_static(self.stack, self.search, self.start, self.costs, count, advance)
        return self.taken[count]

    def of_blocks(
        self,
        statistics: Int[Tensor, "N T"],
        selection: Int[Tensor, "M T"],
        config: CalibrationConfig,
        clock: Clock,
    ) -> "Ranking":
        """The same of whole layers."""
        return Ranking.of(self.stack.of_unit("block"), statistics, selection, config, clock=clock)


def fit_static(
    ranking: Ranking,
    statistics: Int[Tensor, "N T"],
    methods: Sequence[str],
    config: CalibrationConfig,
    *,
    count: int,
    prefix: str,
    full: FullDepth,
    clock: Clock,
) -> tuple[dict[str, Policy], dict[str, tuple[int, ...]]]:
    """Static pruning by some methods: policies by name (``prefix`` and method), removed layers by method.

    - ``influence``: all tokens skip the layers of least mean influence; of blocks, block influence (Men et al. 2024).
    - ``greedy``: all tokens skip the layers whose removal, one after the other, costs least.
    """
    stack = ranking.stack
    static: dict[str, tuple[int, ...]] = {}
    arms: dict[str, Policy] = {}
    for method in methods:
        if method == "influence":
            static[method] = ranking.least_influence(count)
        else:
            static[method] = tuple(sorted(ranking.greedy(count, clock)))
        rates = static_rates(ranking.layers, static[method])
        advance = clock(f"fits of static pruning ({stack.unit}, {method})")
        arms[f"{prefix}{method}"] = calibrate_in_order(
            stack, statistics, rates, config, full=full, advance=advance
        )
    return arms, static


def fit_chance(
    stack: LayerStack,
    statistics: Int[Tensor, "N T"],
    names: Sequence[str],
    config: CalibrationConfig,
    *,
    rates: Mapping[int, float],
    sensitivity: Float[Tensor, "n T"] | None,
    full: FullDepth,
    clock: Clock,
) -> dict[str, Policy]:
    """Policies of the controls that do not look at what a layer does.

    - ``random``: every site is skipped by a random share of the tokens, as many as with routing.
    - ``periodic``: every layer is skipped at evenly spaced positions; skip paths are those of ``random``.
    - ``early_exit``: tokens whose prediction is expected to mind least leave first, and for good: the same score, of
      the state after ``router_layer`` layers (or before the first that may be skipped, if that is lower), decides at
      all layers, against thresholds that let the share x^(1/budget - 1) skip at depth x.

    Args:
        rates: share of tokens that are to skip, by place.
        sensitivity: of the tokens of the first statistics windows; ``early_exit`` needs it.
    """
    arms: dict[str, Policy] = {}
    if "random" in names or "periodic" in names:
        advance = clock("fits of the random control")
        chance = calibrate_in_order(
            stack, statistics, rates, config, chooser="random", full=full, advance=advance
        )
        arms |= {name: replace(chance, chooser=name) for name in ("random", "periodic") if name in names}
    if "early_exit" in names:
        assert sensitivity is not None
        arms["early_exit"] = calibrate_in_order(
            stack,
            statistics[: len(sensitivity)],
            exit_rates(list(rates), config.budget),
            replace(
                config,
                granularity="token",
                router_layer=min(config.router_layer, min(rates) // len(stack.units)),
                allocation="even",
                history=0,
                also=[],
            ),
            sensitivity=sensitivity,
            weights=dict.fromkeys(rates, (0.0, 1.0)),
            advance=clock("fits of the early exit"),
        )
    return arms


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
    notes = stack.journal.step()
    known: dict[tuple[int, ...], float] = notes.recall() or {}

    def divergence(removed: tuple[int, ...]) -> float:
        if removed not in known:
            first = min(removed)  # below it the model is the full one
            policy = start.with_rates(dict.fromkeys(removed, 1.0))
            final = replay(stack, policy, inputs[first], search.ids, first=first)
            known[removed] = float(search.divergence(stack, final)[counted].mean())
            notes.note(known)
        advance(1 - 1 / (1 + len(known) / (3 * count)))
        return known[removed]

    return greedy_layers(divergence, {layer: cost.total for layer, cost in costs.items()}, count)
