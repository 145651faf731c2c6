"""What calibration is asked for."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from layerroute.errors import UserError, nearest
from layerroute.precision import Precision
from layerroute.skipping.skip_config import SKIP_PATHS, SkipConfig, whole_numbers

PRUNED = {
    "block": "layers",
    "attention": "the attention of layers",
    "mlp": "the MLP of layers",
    "attention+mlp": "halves of layers",
}
"""What static pruning takes out, by unit."""

UNITS = tuple(PRUNED)
GRANULARITIES = ("per_layer", "token", "sequence")
TARGETS = ("update", "dense")
ALLOCATIONS = ("even", "cost", "search")
FITTED = tuple(path for path in SKIP_PATHS if path != "identity")
RANKED = 12288
"""Tokens that suffice to rank layers."""

PROGRAM_WIDTH = 128
"""Hidden width of the classifier of ``search``, as published."""


@dataclass(kw_only=True)
class CalibrationConfig:
    """How a router is calibrated.

    Attributes:
        budget: share of routed compute to skip, between 0 and 1 (of ``unit`` in ``layers``).
        also: further budgets that the same router is to serve; fits are made at ``budget``, the others are reached by
            thresholds alone. None of them twice, nor ``budget`` itself.
        unit: what may be skipped of a layer: its ``mlp`` (default; attention stays exact), its ``attention``, all of it
            (``block``), or each half of it (``attention+mlp``; one router decides about both from the layer's input).
        granularity: ``per_layer`` (default; each layer's own input decides), ``token`` (the state after
            ``router_layer`` layers decides for all: one decision a token, which decodes faster) or ``sequence`` (the
            mean of that state over a sequence's first ``prefix_tokens``, which run, decides for all other tokens: one
            choice of layers a prompt; rates are shares of the sequences).
        layers: that may be skipped. Default: from ``router_layer`` to the last but one.
        router_layer: layers that always run. Default 4.
        prefix_tokens: of ``sequence``. Default 16.
        history: of ``per_layer``: how many routed layers below a router sees the inputs of, beside its own layer's.
        skip_path: ``low_rank`` (default; fitted in closed form) or ``non_linear`` (of as many FLOPs; begins there and
            goes on by gradient descent).
        rank: of the skip paths. Default 128.
        sink_tokens: so many first tokens of a sequence always run (see ``SkipConfig``).
        sink_ids: ids of further tokens that always run; ``special_tokens`` of the tokenizer, as a rule.
        length: tokens of a window.
        tokens_statistics: of text that the fits see.
        own_text: share of what the fits see, beside the text, that the model samples itself, so that they know more
            than the kinds that are given (see ``own_text``). Default a quarter; 0 for none.
        tokens_ranking: so many of these rank layers for static pruning, tell ``cost`` what predictors weigh, and are
            what ``search`` searches.
        tokens_selection: on which static layers, and with ``cost`` rates, are chosen.
        tokens_search: so many of these are used where one layer at a time is changed.
        tokens_heldout: on which the table is made; nothing is chosen on them.
        allocation: how the budget is shared out among layers. ``even`` (default): the same share of the tokens skips
            at every layer; nothing is chosen on a text, so that nothing fits one text alone. ``cost``: by what
            skipping costs on the selection windows, starting at greedy pruning. ``search``, of ``sequence``: every
            prompt skips as many places; which, a search finds for each ranking window, and a classifier learns.
        relative: what predictors of ``even`` predict is the logarithm of the energy that the skip path misses,
            divided by the energy of the layer's output to this power: 0 is the missed energy itself, 1 its share.
        target: what a skip path is to give: ``update``, what the layer would add to the state that it was given, or
            ``dense``, what leads back to the state of the full model after this layer.
        refits: how often skip path and predictor are fitted in turn at a layer, to the tokens that skip there.
        background: weight, in a skip path's fit, of tokens that run against those that skip.
        min_share: of ``cost``: a layer is skipped by none or by at least this share of the tokens. Fewer save no
            time: below ``SkipConfig.profitability`` such a layer is run in full.
        rounds: of ``cost``: how often rates are allocated: first around greedy pruning, then around the routing of
            the round before, half as far.
        ridge: strength of the regressions of skip paths, relative to the mean variance of their inputs.
        predictor_ridge: the same for predictors.
        precision: of the layers' and the head's products: ``auto`` (default) is bfloat16 where the machine has units
            for it. Statistics and fits are fp32 and fp64 always.
        seed: of the places of windows and of the random control.
    """

    budget: float
    also: list[float] = field(default_factory=list)
    unit: str = "mlp"
    granularity: str = "per_layer"
    layers: Any = None
    router_layer: int = 4
    prefix_tokens: int = 16
    history: int = 0
    skip_path: str = "low_rank"
    rank: int = 128
    sink_tokens: int = 4
    sink_ids: Any = field(default_factory=list)
    length: int = 256
    tokens_statistics: int = 36864
    own_text: float = 0.25
    tokens_ranking: int = RANKED
    tokens_selection: int = 2048
    tokens_search: int = 1536
    tokens_heldout: int = 16384
    allocation: str = "even"
    relative: float = 0.5
    target: str = "update"
    refits: int = 1
    background: float = 0.1
    min_share: float = 0.1
    rounds: int = 1
    ridge: float = 1e-3
    predictor_ridge: float = 1e-3
    precision: Precision = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        for budget in (self.budget, *self.also):
            if not (math.isfinite(budget) and 0.0 < budget < 1.0):
                raise UserError(
                    f"a skip budget is the share of routed compute to skip, between 0 and 1, got {budget}"
                )
        # By these words a router knows its budgets.
        told = [f"{budget:g}" for budget in (self.budget, *self.also)]
        if len(set(told)) < len(told):
            raise UserError(
                f"calibration.also names a budget twice: {', '.join(told)} (the first is the main one)"
            )
        # A range or a tuple serves, and is written as a list.
        self.layers = None if self.layers is None else whole_numbers(self.layers, "calibration.layers")
        self.sink_ids = whole_numbers(self.sink_ids, "calibration.sink_ids")
        if not -(2**63) < self.seed < 2**63:
            raise UserError(f"calibration.seed is {self.seed}; a seed has 64 bits")
        for key, valid in (
            ("unit", UNITS),
            ("granularity", GRANULARITIES),
            ("target", TARGETS),
            ("skip_path", FITTED),
            ("allocation", ALLOCATIONS),
            ("precision", get_args(Precision)),
        ):
            value = getattr(self, key)
            if value not in valid:
                raise UserError(f"calibration.{key}: {value!r} is not known.{nearest(str(value), valid)}")
        if self.length < 16:
            raise UserError(f"windows of {self.length} tokens are too short to calibrate on; 16 is the least")
        self.tokens_ranking = min(self.tokens_ranking, self.tokens_statistics)
        for key in (
            "tokens_statistics",
            "tokens_ranking",
            "tokens_selection",
            "tokens_search",
            "tokens_heldout",
        ):
            if getattr(self, key) < self.length:
                raise UserError(
                    f"calibration.{key} is {getattr(self, key)}, less than one window of {self.length} tokens"
                )
        for key, least in (
            ("refits", 0),
            ("rounds", 1),
            ("history", 0),
            ("rank", 1),
            ("sink_tokens", 0),
            ("router_layer", 0),
            ("prefix_tokens", 1),
        ):
            if getattr(self, key) < least:
                raise UserError(f"calibration.{key} must be at least {least}, got {getattr(self, key)}")
        if self.sink_tokens >= self.length:
            raise UserError(
                f"windows of {self.length} tokens are too short: the first {self.sink_tokens} always run "
                "(calibration.sink_tokens), and no other is left to skip"
            )
        if self.granularity == "sequence":
            if self.prefix_tokens >= self.length:
                raise UserError(
                    f"windows of {self.length} tokens are too short: the first {self.prefix_tokens} decide for the rest"
                )
            if self.allocation == "cost":
                raise UserError(
                    "calibration.allocation: cost is by token; with calibration.granularity: sequence use even"
                )
        if self.allocation == "search":
            if self.granularity != "sequence":
                raise UserError(
                    "calibration.allocation: search finds a choice of layers for each prompt; it is for "
                    f"calibration.granularity: sequence, not {self.granularity}"
                )
            if self.also:
                raise UserError(
                    "calibration.also: search finds programs of one budget; calibrate each by itself"
                )
        if self.history and (self.granularity, self.allocation) != ("per_layer", "even"):
            raise UserError(
                f"calibration.history is for calibration.granularity: per_layer and calibration.allocation: even, not "
                f"{self.granularity} and {self.allocation}"
            )
        if not 0.0 <= self.min_share <= 1.0:
            raise UserError(f"calibration.min_share is a share from 0 to 1, got {self.min_share}")
        if not 0.0 <= self.own_text < 1.0:
            raise UserError(f"calibration.own_text is a share from 0 to below 1, got {self.own_text}")
        if not 0.0 <= self.relative <= 1.0:
            raise UserError(f"calibration.relative is a power from 0 to 1, got {self.relative}")
        for key in ("ridge", "predictor_ridge", "background"):
            if not getattr(self, key) > 0:
                raise UserError(f"calibration.{key} must be above 0, got {getattr(self, key)}")

    def skip_config(self, num_layers: int) -> SkipConfig:
        """The router to be made, with its layers spelt out.

        Raises:
            UserError: if layers are out of range.
        """
        config = SkipConfig(
            layers=self.layers,
            unit=self.unit,
            granularity=self.granularity,
            router_layer=self.router_layer,
            prefix_tokens=self.prefix_tokens,
            history=self.history,
            skip_path=self.skip_path,
            rank=self.rank,
            sink_tokens=self.sink_tokens,
            sink_ids=self.sink_ids,
        )
        config.routing.router, config.routing.initial_bias = "linear", 0.0
        if self.allocation == "search":
            config.routing.router, config.routing.widths = "mlp", [PROGRAM_WIDTH]
        return config.resolve(num_layers).with_budget(self.budget)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
