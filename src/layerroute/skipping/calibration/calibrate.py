"""A routed model from a pretrained one without gradients, and the controls that say what it is worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from layerroute.precision import choose_precision
from layerroute.skipping.calibration.allocation import even_rates
from layerroute.skipping.calibration.by_cost import Allocated, allocate_by_cost, probe_sensitivity
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.controls import Ranking, fit_chance, fit_static
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.calibration.own_text import sample_own_text, with_own_text
from layerroute.skipping.calibration.programs import find_programs, learn_programs
from layerroute.skipping.calibration.stack import FullDepth, LayerStack
from layerroute.skipping.flops import saved_by_skipping
from layerroute.skipping.skip_config import SkipConfig

CONTROLS = (
    "static_influence",
    "static_greedy",
    "static_block_influence",
    "static_block_greedy",
    "random",
    "periodic",
    "early_exit",
)
"""What cannot be as clever as routing: see ``controls``. ``static_block_*`` are for units that are parts of layers."""

BLOCK = "static_block_"

TABLE = CONTROLS[:5]
"""The controls of the command's table."""

Stage = Callable[[str], Callable[[float], None]]
"""Given the name of a stage, what is told the share of it that is done."""


@dataclass(kw_only=True)
class FittedArms:
    """What came out.

    Attributes:
        config: what was asked for.
        skip: configuration of the router.
        policy: the routed arm.
        static: removed places by method (``influence``, ``greedy``; of whole layers ``block_influence``, ...).
        rounds: per round of allocation: cross-entropy on the selection windows, and rates by place.
        chosen: index of the round whose policy was taken.
        arms: policies by name, the routed one among them.
        rates: of ``config.also``: by budget, the share of tokens that skip by place.
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


def applicable(controls: Sequence[str], unit: str) -> list[str]:
    """Those of ``CONTROLS`` that a unit has: static pruning of whole layers is the same where layers are the unit."""
    return [name for name in controls if unit != "block" or not name.startswith(BLOCK)]


@torch.inference_mode()
def fit_arms(
    model: Any,
    config: CalibrationConfig,
    *,
    statistics: Int[Tensor, "N T"],
    selection: Int[Tensor, "M T"],
    controls: Sequence[str] = TABLE,
    rankings: dict[str, Ranking] | None = None,
    own: Int[Tensor, "n T"] | None = None,
    journal: Journal | None = None,
    stage: Stage = silent,
) -> FittedArms:
    """Fit a router and the static and random controls, all in the same way.

    Args:
        model: a transformers causal LM without a router; it is left as it is.
        config: what to make.
        statistics: windows of text that the fits see, beside the model's own.
        selection: windows on which static layers, and with ``allocation`` ``cost`` rates, are chosen.
        controls: which of ``CONTROLS`` to fit beside it; those that the unit does not have are left out.
        rankings: by unit, what earlier calls with the same windows made for other budgets; what is new is added. Not
            used where the predictors need sensitivities too.
        own: what `sample_own_text` gave for this model before. Default: sampled here, as ``config.own_text`` asks.
        journal: keeps what has been found: a call with the same arguments and a journal of the same folder goes on
            where this one was cut off.
        stage: for progress.

    Returns:
        The policies; ``install`` puts one into the model.

    Raises:
        UserError: if the model cannot be opened at its layers, or layers are out of range.
    """
    clock = _Clock(stage)
    precision = choose_precision(config.precision, model.device).name
    journal = journal or Journal()
    stack = LayerStack(model, config.length, precision, config.unit, journal=journal)
    skip = config.skip_config(len(stack.layers))
    wanted = applicable(controls, config.unit)
    even = {budget: even_rates(skip, budget) for budget in (config.budget, *config.also)}
    count = max(1, round(config.budget * len(skip.places())))

    if own is None and config.own_text:
        advance = clock("the model's own text")
        own = journal.once(lambda: sample_own_text(model, config, len(statistics), advance=advance))
    if own is not None and len(own):
        statistics = with_own_text(statistics, own)
    full = FullDepth(stack, statistics)
    final: list[Tensor] = []
    ranking = sensitivity = None
    known = {} if rankings is None else rankings
    if config.allocation == "cost" or "early_exit" in wanted:
        ranking = Ranking.of(stack, statistics, selection, config, clock=clock, final=final)
        sensitivity = probe_sensitivity(ranking, statistics, final.pop(), clock)
    elif config.allocation == "search" or any(name not in ("random", "periodic") for name in wanted):
        if config.unit in known:
            ranking = replace(known[config.unit], stack=stack)
        else:
            ranking = Ranking.of(stack, statistics, selection, config, clock=clock)
        known[config.unit] = ranking
    if config.allocation == "cost":
        assert ranking is not None and sensitivity is not None
        found = allocate_by_cost(ranking, statistics, selection, config, count, sensitivity, clock)
    else:
        rates, predictors = even[config.budget], None
        if config.allocation == "search":
            assert ranking is not None
            searched = statistics[: max(1, config.tokens_ranking // config.length)]
            programs = find_programs(ranking, searched, config, count, clock)
            rates = dict(zip(ranking.layers, programs.float().mean(dim=0).tolist(), strict=True))
            predictors = learn_programs(full, programs, config, ranking.layers)
        advance = clock("fits under routing")
        policy = calibrate_in_order(
            stack,
            statistics,
            rates,
            config,
            predictors=predictors,
            fit_all=bool(config.also),
            full=full,
            advance=advance,
        )
        loss = journal.once(lambda: selection_loss(stack, policy, selection))
        also = {budget: even[budget] for budget in config.also}
        found = Allocated(policy=policy, rounds=[{"rates": rates, "loss": loss}], chosen=0, also=also)

    arms: dict[str, Policy] = {}
    static: dict[str, tuple[int, ...]] = {}
    if ranking is not None:
        arms, static = _fit_all_static(
            ranking, known, statistics, selection, wanted, config, skip, count, full, clock
        )
    arms |= fit_chance(
        stack,
        statistics,
        wanted,
        config,
        rates=even[config.budget],
        sensitivity=sensitivity,
        full=full,
        clock=clock,
    )
    clock.stop()
    return FittedArms(
        config=config,
        skip=skip,
        policy=found.policy,
        static=static,
        rates=found.also,
        rounds=found.rounds,
        chosen=found.chosen,
        arms={"routed": found.policy, **arms},
        seconds=clock.seconds,
    )


def _fit_all_static(
    ranking: Ranking,
    known: dict[str, Ranking],
    statistics: Tensor,
    selection: Tensor,
    wanted: Sequence[str],
    config: CalibrationConfig,
    skip: SkipConfig,
    count: int,
    full: FullDepth,
    clock: _Clock,
) -> tuple[dict[str, Policy], dict[str, tuple[int, ...]]]:
    """Static pruning of the unit and, where it is a part of a layer, of as many whole layers as save as much."""
    own = [name.removeprefix("static_") for name in wanted if name in ("static_influence", "static_greedy")]
    arms, static = fit_static(
        ranking, statistics, own, config, count=count, prefix="static_", full=full, clock=clock
    )
    whole = [name.removeprefix(BLOCK) for name in wanted if name.startswith(BLOCK)]
    if whole:
        text = ranking.stack.model.config
        saved = [
            saved_by_skipping(text, replace(skip, unit=unit), config.length) for unit in (skip.unit, "block")
        ]
        blocks = max(1, round(config.budget * len(skip.sites()) * saved[0] / saved[1]))
        blocks_too = replace(config, unit="block")
        if "block" in known:
            known["block"] = replace(known["block"], stack=ranking.stack.of_unit("block"))
        else:
            known["block"] = ranking.of_blocks(statistics, selection, blocks_too, clock)
        more, named = fit_static(
            known["block"], statistics, whole, config, count=blocks, prefix=BLOCK, full=full, clock=clock
        )
        arms, static = {**arms, **more}, {**static, **{f"block_{name}": named[name] for name in named}}
    return arms, static


def selection_loss(stack: LayerStack, policy: Policy, ids: Int[Tensor, "M T"]) -> float:
    """Cross-entropy in nats of a policy on the selection windows."""
    return float(stack.losses(replay(stack, policy, stack.embed(ids), ids), ids).mean())
