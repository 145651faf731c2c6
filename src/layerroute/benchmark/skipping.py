"""What the cases ``prefill`` and ``decode`` share: options, arms, gate and facts.

Four ways to run one model on the same tokens: ``dense`` (plain transformers), ``masked`` and ``sparse`` (routed, by
forced random decisions, so that speed does not depend on a trained router; the router's own work is done all the same)
and ``limit``, the plain model with that share of the routed layers physically removed.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerroute.benchmark.case import Check, Limit, Prepared, Value, each_pair
from layerroute.benchmark.memory import peak_memory
from layerroute.benchmark.skipping_models import (
    DTYPES,
    SHAPES,
    Models,
    build_models,
    draw,
    spread_out,
    without_layers,
)
from layerroute.errors import UserError, nearest
from layerroute.ops.flops import flop_counter
from layerroute.precision import choose_device
from layerroute.skipping import SkipConfig, executed, forced, get_router, router_disabled
from layerroute.skipping.configuration import KV_MODES, SKIP_PATHS, UNITS

DENSE, MASKED, SPARSE, LIMIT = "dense", "masked", "sparse", "limit"
_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
_ROUTER_LAYER = {"tiny": 2}

# A call of one arm: what it computes, in a form that can be compared
Result = Mapping[str, Tensor]
Work = Callable[[PreTrainedModel], Callable[[], Result]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of one command have in common."""

    shape: str
    skip: SkipConfig
    dtype: str
    device: torch.device
    seed: int

    def labels(self) -> dict[str, Value]:
        """For the record."""
        return {
            "shape": self.shape,
            "unit": self.skip.unit,
            "kv": self.skip.kv,
            "skip_path": self.skip.skip_path,
            "dtype": self.dtype,
        }


def add_arguments(parser: argparse.ArgumentParser, sizes: str) -> None:
    """Declare the options that both cases have."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=sizes.split(),
        metavar="BxT",
        help="rows x tokens; default: %(default)s",
    )
    parser.add_argument(
        "--skip",
        nargs="+",
        type=float,
        default=[0.25, 0.5, 0.75],
        metavar="SHARE",
        help="shares of the routed layers' tokens that skip (default: %(default)s)",
    )
    parser.add_argument(
        "--shape",
        default="smollm2-135m",
        help=f"model, weights at random: {', '.join(SHAPES)} (default: %(default)s)",
    )
    parser.add_argument("--unit", choices=UNITS, default="block", help="what is skipped (default: block)")
    parser.add_argument("--kv", choices=KV_MODES, default="project", help="default: project")
    parser.add_argument("--skip-path", choices=SKIP_PATHS, default="identity", help="default: identity")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="default: fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tokens and decisions (default: 0)")


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Check the options that both cases have."""
    if arguments.shape not in SHAPES:
        raise UserError(f"--shape: {arguments.shape!r} is not known.{nearest(arguments.shape, SHAPES)}")
    for share in arguments.skip:
        if not 0.0 < share < 1.0:
            raise UserError(f"--skip: {share} is not a share between 0 and 1.")
    skip = SkipConfig(
        unit=arguments.unit,
        kv=arguments.kv,
        skip_path=arguments.skip_path,
        router_layer=_ROUTER_LAYER.get(arguments.shape, 4),
        sink_tokens=0,
    )
    return Setting(
        shape=arguments.shape,
        skip=skip,
        dtype=arguments.dtype,
        device=choose_device(arguments.device),
        seed=arguments.seed,
    )


def size_of(text: str) -> tuple[int, int]:
    """``4x512`` as rows and tokens."""
    try:
        rows, tokens = (int(word) for word in text.split("x"))
    except ValueError:
        raise UserError(f"--sizes: {text!r} is not rows x tokens, as 4x512.") from None
    if min(rows, tokens) < 1:
        raise UserError(f"--sizes: {text!r} has a number below 1.")
    return rows, tokens


_BUILT: dict[str, Models] = {}


def models_of(setting: Setting) -> Models:
    """Built once: all rows of a command compare the same models."""
    key = repr(setting)
    if key not in _BUILT:
        _BUILT.clear()
        dtype = DTYPES[setting.dtype]
        _BUILT[key] = build_models(setting.shape, setting.skip, dtype, setting.device, setting.seed)
    return _BUILT[key]


@dataclass(kw_only=True)
class Arms:
    """The four arms of one row.

    Args:
        models: plain and routed.
        skip: share of tokens that skip.
        rows, first, last: the decisions are drawn for positions ``first`` to ``last`` (without) of each row; before
            ``first`` every token runs.
        seed: of the draw.
        work: what a model has to do, given the model; called once an arm.
    """

    models: Models
    skip: float
    rows: int
    first: int
    last: int
    seed: int
    work: Work

    def __post_init__(self) -> None:
        layers = self.models.routed_layers
        per_layer = self.models.sites // len(layers)
        self.removed = spread_out(layers, max(1, round(self.skip * len(layers))))
        before = torch.ones(self.rows, self.first, self.models.sites, dtype=torch.long)
        drawn = draw(self.rows, self.last - self.first, self.models.sites, self.skip, self.seed)
        self.choice = torch.cat([before, drawn], dim=1)
        static = [[int(layer not in self.removed)] * per_layer for layer in layers]
        self.static = torch.tensor(static).flatten().expand(1, self.last, -1).contiguous()
        self.shorter = without_layers(self.models.plain, self.removed)
        self.calls = {
            DENSE: partial(self._run, self.work(self.models.plain), nullcontext),
            MASKED: partial(
                self._run, self._work_under(self.choice, MASKED), self.choosing(self.choice, MASKED)
            ),
            SPARSE: partial(
                self._run, self._work_under(self.choice, SPARSE), self.choosing(self.choice, SPARSE)
            ),
            LIMIT: partial(self._run, self.work(self.shorter), nullcontext),
        }

    def choosing(self, choice: Tensor, execution: str) -> Callable[[], AbstractContextManager[Any]]:
        """The context in which the routed model makes these choices in this way."""
        routed = self.models.routed

        def enter() -> AbstractContextManager[Any]:
            stack = ExitStack()
            stack.enter_context(forced(routed, choice))
            stack.enter_context(executed(routed, execution))
            return stack

        return enter

    def _work_under(self, choice: Tensor, execution: str) -> Callable[[], Result]:
        with self.choosing(choice, execution)(), torch.inference_mode():
            return self.work(self.models.routed)

    @staticmethod
    def _run(call: Callable[[], Result], context: Callable[[], AbstractContextManager[Any]]) -> Result:
        with context(), torch.inference_mode():
            return call()

    def gate(self, tolerance: float) -> Iterator[Check]:
        """Masked equals sparse, switched off equals plain, and skipped by all equals removed."""
        masked, sparse = self.calls[MASKED](), self.calls[SPARSE]()
        yield from each_pair(
            _named(sparse, "sparse and masked"), _named(masked, "sparse and masked"), tolerance
        )
        same = "disabled and dense"
        routed = self.models.routed
        off = partial(router_disabled, routed)
        with off(), torch.inference_mode():
            work = self.work(routed)
        switched_off, plain = self._run(work, off), self.calls[DENSE]()
        yield from each_pair(_named(switched_off, same), _named(plain, same), 0.0)
        config = get_router(routed).config
        if config.skip_path == "identity" and config.unit in ("block", "attention+mlp"):
            work = self._work_under(self.static, SPARSE)
            skipped = self._run(work, self.choosing(self.static, SPARSE))
            yield Check.compare(
                "logits of sparse, these layers skipped by all, and limit",
                skipped["logits"],
                self.calls[LIMIT]()["logits"],
                tolerance,
            )

    def facts(
        self, tokens: int, cache_bytes: Callable[[Result], int], device: torch.device
    ) -> dict[str, dict[str, Value]]:
        """Executed FLOPs a token, peak memory of a call and bytes of keys and values, by arm."""
        found: dict[str, dict[str, Value]] = {}
        for name, call in self.calls.items():
            with flop_counter() as counter:
                peak, result = peak_memory(call, device)
            found[name] = {
                "executed_flops_per_token": counter.get_total_flops() / tokens,
                "kv_bytes": cache_bytes(result),
                "peak_bytes": peak,
            }
        layers = len(self.models.routed_layers)
        found[LIMIT]["layers_removed"] = len(self.removed)
        found[LIMIT]["layers_routed"] = layers
        return found

    def prepared(self, setting: Setting, tokens: int, cache_bytes: Callable[[Result], int]) -> Prepared:
        """The row, ready to be gated and timed."""
        layers = len(self.models.routed_layers)
        return Prepared(
            gate=lambda: list(self.gate(_TOLERANCE[setting.dtype])),
            arms=dict(self.calls),
            count=lambda: self.facts(tokens, cache_bytes, setting.device),
            limit=Limit(arm=LIMIT, factor=self.skip * layers / len(self.removed)),
        )


def _named(result: Result, pair: str) -> dict[str, Tensor]:
    return {f"{name} of {pair}": value for name, value in result.items()}


def arms(setting: Setting, skip: float, work: Work, *, rows: int, first: int, last: int) -> Arms:
    """The arms of one row."""
    return Arms(
        models=models_of(setting), skip=skip, rows=rows, first=first, last=last, seed=setting.seed, work=work
    )


def keys_and_values(cache: Any) -> Sequence[Tensor]:
    """All that a cache holds; zeros in the slots that a row of an evicting layer has not filled."""
    found = []
    for layer in cache.layers:
        slots = getattr(layer, "slots", None)
        for held in (layer.keys, layer.values):
            if held is not None:
                found.append(held if slots is None else held * (slots >= 0)[:, None, :, None])
    return found
