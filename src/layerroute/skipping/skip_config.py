"""How a router is added to a pretrained model: what may be skipped, who decides, and how it is executed."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any

from layerroute.errors import UserError, check_keys, nearest
from layerroute.routing.execution import EXECUTIONS, Profitability
from layerroute.routing.module import RoutingConfig
from layerroute.routing.serving import check_serve

UNITS = ("block", "attention", "mlp", "attention+mlp")
GRANULARITIES = ("token", "per_layer", "sequence", "batch", "sequence_mean")
SKIP_PATHS = ("identity", "low_rank", "non_linear")
KV_MODES = ("project", "evict")
PATHS = ("skip", "run")


def _default_routing() -> RoutingConfig:
    return RoutingConfig(router="mlp", initial_bias=2.0, rate=0.75)


@dataclass(kw_only=True)
class SkipProfitability(Profitability):
    """From which share of skipped tokens at a site ``auto`` takes sparse execution there.

    In decoding a layer's weights are read whether one row runs or all do, so that little is won where rows differ. In
    prefill sparse execution pays from 2 % on with low-rank skip paths, which masked execution computes for all tokens,
    and from 4 to 7 % on without (``layerroute bench calibrate --phases prefill --sizes 4x256``).

    Attributes:
        prefill: share in a call of several tokens.
        decode: share in a call of one token a row.
        train: share in training.
    """

    key = "skip.profitability"

    prefill: float = 0.02
    decode: float = 0.5
    train: float = 0.08


@dataclass(kw_only=True)
class SkipConfig:
    """What a router may skip, what it reads and how skipping is executed.

    Two numbers describe how much: ``routing.rate`` is the share of tokens asked to *run* (the expensive path, as
    everywhere in this package); ``budget`` is its complement, the share of routed compute to be *skipped*, the
    ``--budget`` of the command line.

    Attributes:
        layers: indices of the layers that may be skipped. Default: all from ``router_layer`` to the last but one.
        unit: ``block`` (default; the whole decoder layer), ``attention``, ``mlp``, or ``attention+mlp`` (two
            choices a layer).
        granularity: who decides, from what.

            - ``token`` (default): one router reads the state after the first ``router_layer`` layers and decides
              for all sites at once.
            - ``per_layer``: each layer's own router reads the layer's input.
            - ``sequence``: one choice a sequence, from the mean state of its first ``prefix_tokens`` tokens, which
              always run. Causal.
            - ``batch``: one choice a batch, from the mean input embedding (historical, for REINFORCE). *Not causal.*
            - ``sequence_mean``: one choice a sequence, from the mean state of all its tokens (historical). *Not
              causal*; with a cache, the choice made on the first call holds for the following ones.
        router_layer: layers that run before the router reads. Default 4.
        prefix_tokens: of ``sequence``.
        history: of ``per_layer``: how many layers below, of those that may be skipped, a router sees the inputs of,
            beside its own layer's. Default 0.
        routing: router, estimator, budget and controls. Default: MLP router D/2, D/4 that starts near `run`.
        skip_path: what a skipping token gets: ``identity``, or ``low_rank`` (default): h + (h - mean) A B + bias, or
            ``non_linear``: h + SiLU((h - mean) A) B + bias.
        rank: columns of A.
        kv: ``project`` (default): a skipped token still writes this layer's keys and values, from the layer's
            input. ``evict``: it writes none, and later tokens cannot see it there.
        sink_tokens: so many first tokens of each sequence always run. Default 4, as many as Xiao et al. (2023) keep: an
            attention sink is not always the very first token, and one that skips spoils all that follow.
        sink_ids: ids of tokens that always run: the separators of documents and turns, which become attention sinks
            in the middle of a sequence. Default None: calibration and training take the tokenizer's special tokens,
            ``add_router`` none. Not seen where a model is given embeddings in place of ids.
        budgets: for a router that serves several budgets (or sites at rates of their own): by budget, written as a
            number, the share of tokens that run at each site, in the order of ``sites``. Made by calibration; its
            thresholds are in the router's weights. Default: none, all sites at ``routing.rate``.
        serve: ``threshold`` (default): the saved thresholds decide, and the rate is what they give on the text at hand.
            ``rate``: each sequence is held at the rate asked for, whatever the text: a token's thresholds depend on
            what earlier tokens of its sequence took. ``rate:0.05``: within 0.05 at 512 tokens where ``rate`` is within
            0.01, which costs less quality. For learned routers of granularity ``token`` and ``per_layer``.
        execution: ``auto`` (default), ``masked`` (the reference: everything is computed) or ``sparse``.
        profitability: thresholds of ``auto``.

    Raises:
        UserError: for values that are not known, out of range, or do not fit each other.
    """

    layers: Sequence[int] | None = None
    unit: str = "block"
    granularity: str = "token"
    router_layer: int = 4
    prefix_tokens: int = 16
    history: int = 0
    routing: RoutingConfig = field(default_factory=_default_routing)
    skip_path: str = "low_rank"
    rank: int = 64
    kv: str = "project"
    sink_tokens: int = 4
    sink_ids: Sequence[int] | None = None
    budgets: dict[str, list[float]] | None = None
    serve: str = "threshold"
    execution: str = "auto"
    profitability: SkipProfitability = field(default_factory=SkipProfitability)

    def __post_init__(self) -> None:
        for key, valid in (
            ("unit", UNITS),
            ("granularity", GRANULARITIES),
            ("skip_path", SKIP_PATHS),
            ("kv", KV_MODES),
            ("execution", EXECUTIONS),
        ):
            value = getattr(self, key)
            if value not in valid:
                raise UserError(f"skip.{key}: {value!r} is not known.{nearest(str(value), valid)}")
        check_serve(self.serve, "skip.serve", obstacle=self.serve_obstacle)
        for key, least in (
            ("router_layer", 0),
            ("prefix_tokens", 1),
            ("history", 0),
            ("rank", 1),
            ("sink_tokens", 0),
        ):
            value = getattr(self, key)
            if value < least:
                raise UserError(f"skip.{key} must be at least {least}, got {value}")
        if self.history and self.granularity != "per_layer":
            raise UserError(
                f"skip.history is for a router at each layer; skip.granularity: {self.granularity} reads one state"
            )
        for key in ("layers", "sink_ids"):  # a range or a tuple serves, and is written as a list
            if getattr(self, key) is not None:
                setattr(self, key, whole_numbers(getattr(self, key), f"skip.{key}"))
        if any(token < 0 for token in self.sink_ids or []):
            raise UserError(f"skip.sink_ids are ids of tokens, which count from 0, got {self.sink_ids}")
        if self.kv == "evict" and self.unit == "mlp":
            raise UserError("skip.kv: evict has no effect on unit mlp, which writes no keys; use project")
        if self.routing.control == "oracle":
            raise UserError(
                "skip.routing.control: oracle knows where recall is asked for; only hybrid models have it"
            )
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.budgets is not None:
            self._check_budgets(self.budgets)

    def _check_budgets(self, budgets: dict[str, list[float]]) -> None:
        sites = len(self.layers or []) * len(self.units)
        for name, rates in budgets.items():
            try:
                valid = 0.0 < float(name) < 1.0
            except ValueError:
                valid = False
            if not valid:
                raise UserError(f"skip.budgets: {name!r} is not a budget, a number between 0 and 1")
            if len(rates) != sites or not all(0.0 <= rate <= 1.0 for rate in rates):
                raise UserError(
                    f"skip.budgets: budget {name} needs {sites} shares from 0 to 1, one a site of skip.layers"
                )

    def _check_layers(self, layers: Sequence[int]) -> None:
        if not layers:
            raise UserError("skip.layers is empty: no layer may be skipped; name some, or leave it out")
        if sorted(set(layers)) != list(layers):
            raise UserError(f"skip.layers must be in rising order and without repetition, got {layers}")
        if layers[0] < 0:
            raise UserError(f"skip.layers counts from 0, got {layers[0]}")
        if self.reads_at is not None and layers[0] < self.reads_at:
            raise UserError(
                f"skip.layers begins at {layers[0]}, but the {self.granularity} router reads the state after "
                f"{self.reads_at} layers and can only skip later ones; raise the layers, or lower skip.router_layer"
            )

    @property
    def reads_at(self) -> int | None:
        """Index of the layer whose input the one router reads; None for ``per_layer``, which has many."""
        if self.granularity == "per_layer":
            return None
        return 0 if self.granularity == "batch" else self.router_layer

    @property
    def causal(self) -> bool:
        """Whether a decision depends on earlier tokens alone.

        Controls look at no state, and all but ``random``, which is drawn by the ids of the tokens, at no token at all.
        """
        blind = self.routing.control not in (None, "random")
        return blind or self.granularity in ("token", "per_layer", "sequence")

    @property
    def serve_obstacle(self) -> str | None:
        """Why the rate cannot be held while serving, or None."""
        if self.routing.control is not None:
            return f"the decisions of routing.control: {self.routing.control} have no margins to move"
        if self.granularity not in ("token", "per_layer"):
            return f"with granularity: {self.granularity} tokens do not decide for themselves"
        return None

    @property
    def units(self) -> tuple[str, ...]:
        """The sites of one layer, in the order of execution."""
        return tuple(self.unit.split("+"))

    @property
    def budget(self) -> float:
        """The share of routed compute to be skipped: 1 - ``routing.rate``."""
        return 1.0 - self.routing.rate

    def with_budget(self, budget: float) -> "SkipConfig":
        """The same configuration for another budget.

        Raises:
            UserError: unless 0 < budget < 1.
        """
        if not (math.isfinite(budget) and 0.0 < budget < 1.0):
            raise UserError(
                f"a skip budget is the share of routed compute to skip, between 0 and 1, got {budget}"
            )
        return replace(self, routing=replace(self.routing, rate=1.0 - budget))

    def resolve(self, num_layers: int) -> "SkipConfig":
        """The same configuration with ``layers`` spelt out for a model of ``num_layers`` layers.

        Raises:
            UserError: if a layer is out of the model's range, or none is left to skip.
        """
        layers = self.layers
        if layers is None:
            layers = list(range(self.router_layer, num_layers - 1))
            if not layers:
                raise UserError(
                    f"a model of {num_layers} layers has none between skip.router_layer={self.router_layer} and "
                    "its last one; lower skip.router_layer, or name skip.layers"
                )
        if layers[-1] >= num_layers:
            raise UserError(
                f"skip.layers: {layers[-1]} is out of range; the model has layers 0 to {num_layers - 1}"
            )
        return replace(self, layers=layers)

    def sites(self) -> tuple[str, ...]:
        """Names of the sites, ``layer4.block``, in the order of execution. Needs ``layers`` (see ``resolve``)."""
        if self.layers is None:
            raise ValueError("the sites are known once `resolve` has been called")
        return tuple(f"layer{layer}.{unit}" for layer in self.layers for unit in self.units)

    def places(self) -> tuple[int, ...]:
        """Numbers of the sites in the order of execution, where the units of all layers of the model are counted."""
        count = len(self.units)
        return tuple(layer * count + half for layer in self.layers or [] for half in range(count))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: plain numbers, strings and lists."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SkipConfig":
        """The inverse of ``to_dict``.

        Raises:
            UserError: for unknown keys, and whatever the values are checked for.
        """
        values = dict(values)
        for key, nested in (("routing", RoutingConfig), ("profitability", SkipProfitability)):
            if isinstance(values.get(key), Mapping):
                values[key] = _build(nested, values[key], f"skip.{key}")
        return _build(cls, values, "skip")


def _build(cls: type[Any], values: Mapping[str, Any], where: str) -> Any:
    check_keys(values, (item.name for item in fields(cls)), where)
    return cls(**values)


def whole_numbers(values: Any, key: str) -> list[int]:
    """A range, a tuple or an array of whole numbers as a list.

    Raises:
        UserError: naming ``key``, for anything else.
    """
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise UserError(f"{key} is a list of whole numbers, got {values!r}") from error


@cache
def layer_and_unit(site: str) -> tuple[int, str]:
    """Of a site's name, ``layer4.block``."""
    layer, unit = site.removeprefix("layer").split(".")
    return int(layer), unit
