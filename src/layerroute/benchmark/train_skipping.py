"""Case ``train-skipping``: training steps of a model that skips layers, sparse against masked."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerroute.benchmark import skipping
from layerroute.benchmark.case import Check, Comparison, Limit, Prepared, Value
from layerroute.benchmark.memory import peak_memory
from layerroute.benchmark.skipping import DENSE, LIMIT, MASKED, SPARSE, Setting
from layerroute.benchmark.skipping_models import Models, draw, spread_out, without_layers
from layerroute.objectives.language_model import cross_entropy, shift_labels
from layerroute.ops.flops import flop_counter
from layerroute.skipping import executed, forced, get_router, router_disabled

DESCRIPTION = """\
Time training steps (forward, backward, clipping, AdamW over all parameters) of a model whose tokens skip layers, with
the estimator `selected`: plain transformers, everything computed (masked) and chosen paths only (sparse), by forced
random decisions, and the structural limit, the plain model with that share of the routed layers removed. Before that,
masked and sparse must give the same gradients, a switched-off router those of the plain model, and layers that all
tokens skip those of layers that are not there."""

_TOLERANCE = {"fp32": 5e-4, "bf16": 5e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    skipping.add_arguments(parser, "1x512")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and share."""
    setting = skipping.setting_of(arguments)
    setting.skip.routing.estimator = "selected"
    return [
        Comparison(
            title=f"{rows}x{tokens}, {share:.0%} skipped",
            labels={
                "batch": rows,
                "time": tokens,
                "skip": share,
                "estimator": "selected",
                **setting.labels(),
            },
            baseline=MASKED,
            tokens=rows * tokens,
            prepare=partial(_prepare, setting, rows, tokens, share),
            device=setting.device,
        )
        for rows, tokens in map(skipping.size_of, arguments.sizes)
        for share in arguments.skip
    ]


class Step:
    """One optimizer step on the same tokens each time."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.model, self.ids = model, ids
        self.optimizer: torch.optim.Optimizer | None = None

    def gradients(self) -> Tensor:
        """Forward and backward; the loss."""
        self.model.zero_grad()
        logits = self.model(self.ids, use_cache=False).logits
        loss = cross_entropy(logits, shift_labels(self.ids))
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        """The whole step; a learning rate of 0 keeps what was compared as it was, and costs the same."""
        self.gradients()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def _prepare(setting: Setting, rows: int, tokens: int, share: float) -> Prepared:
    generator = torch.Generator().manual_seed(setting.seed)
    vocabulary = skipping.SHAPES[setting.shape]["vocab_size"]
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator).to(setting.device)
    models = skipping.models_of(setting)
    layers = models.routed_layers
    removed = spread_out(layers, max(1, round(share * len(layers))))
    steps = Steps(
        models=models,
        shorter=without_layers(models.plain, removed),
        removed=removed,
        choice=draw(rows, tokens, models.sites, share, setting.seed),
        ids=ids,
    )
    arms = {name: partial(steps.run, name) for name in (DENSE, MASKED, SPARSE, LIMIT)}
    return Prepared(
        gate=lambda: list(steps.gate(_TOLERANCE[setting.dtype])),
        arms=arms,
        count=lambda: steps.facts(setting.device),
        limit=Limit(arm=LIMIT, factor=share * len(layers) / len(removed), whole=DENSE),
    )


@dataclass(kw_only=True)
class Steps:
    """Training steps of the arms of one row. All models share their parameters, and so the gradients.

    Args:
        models: plain and routed.
        shorter: the plain one without the layers ``removed``.
        choice: forced upon masked and sparse.
        ids: (B, T) the batch.
    """

    models: Models
    shorter: PreTrainedModel
    removed: set[int]
    choice: Tensor
    ids: Tensor
    _steps: dict[str, Step] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        models = {DENSE: self.models.plain, MASKED: self.models.routed, LIMIT: self.shorter}
        for name, model in models.items():
            self._steps[name] = Step(model.train(), self.ids)
        self._steps[SPARSE] = self._steps[MASKED]

    def run(self, name: str) -> None:
        """One step of an arm."""
        with self._context(name, self.choice):
            self._steps[name]()

    @contextmanager
    def _context(self, name: str, choice: Tensor) -> Iterator[None]:
        with ExitStack() as stack:
            if name in (MASKED, SPARSE):
                stack.enter_context(forced(self.models.routed, choice))
                stack.enter_context(executed(self.models.routed, name))
            yield

    def gate(self, tolerance: float) -> Iterator[Check]:
        """Losses, and gradients of the router and of some layers: the first routed, a middle and the last one."""
        layers = self.models.routed_layers
        some = [
            "layerroute",
            *(f"layers.{layer}." for layer in (layers[0], layers[len(layers) // 2], layers[-1])),
        ]
        masked, sparse = self._results(MASKED, some), self._results(SPARSE, some)
        assert any("layerroute" in name for name in masked) and get_router(self.models.routed).training
        yield from self._compared(sparse, masked, "sparse and masked", tolerance)
        off = partial(router_disabled, self.models.routed)
        disabled, dense = self._results(MASKED, some, within=off), self._results(DENSE, some)
        yield Check.compare("loss, disabled and dense", disabled.pop("loss"), dense.pop("loss"), 0.0)
        yield from self._compared(disabled, dense, "disabled and dense", tolerance)
        config = get_router(self.models.routed).config
        if config.skip_path != "identity" or config.unit not in ("block", "attention+mlp"):
            return
        per_layer = self.models.sites // len(layers)
        runs = [[int(layer not in self.removed)] * per_layer for layer in layers]
        static = torch.tensor(runs).flatten().expand(1, self.ids.shape[1], -1).contiguous()
        # Through the router a gradient reaches the layers before it: those behind are compared.
        kept = [i for i in range(layers[0], self._depth) if i not in self.removed]
        ends = [f"layers.{layer}." for layer in kept[:1] + kept[-1:]]
        yield from self._compared(
            self._results(SPARSE, ends, choice=static),
            self._results(LIMIT, ends),
            "sparse, these layers skipped by all, and limit",
            tolerance,
        )

    @property
    def _depth(self) -> int:
        return int(self.models.plain.config.num_hidden_layers)

    def _results(
        self,
        name: str,
        parts: Sequence[str],
        *,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        choice: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss and gradients of an arm, of the parameters whose names begin with one of these parts of the model."""
        routed = self.models.routed
        routed.zero_grad()
        with within(), self._context(name, self.choice if choice is None else choice):
            found = {"loss": self._steps[name].gradients()}
        for parameter, value in routed.named_parameters():
            if parameter.removeprefix("model.").startswith(tuple(parts)):
                grad = torch.zeros_like(value) if value.grad is None else value.grad.clone()
                found[f"gradients of {parameter}"] = grad
        routed.zero_grad()
        return found

    @staticmethod
    def _compared(
        found: dict[str, Tensor], expected: dict[str, Tensor], who: str, tolerance: float
    ) -> Iterator[Check]:
        for name, value in expected.items():
            yield Check.compare(f"{name}, {who}", found[name], value, tolerance)

    def facts(self, device: torch.device) -> dict[str, dict[str, Value]]:
        """Executed FLOPs a token and peak memory of a step, by arm, once its optimizer has its state."""
        found: dict[str, dict[str, Value]] = {}
        for name in (DENSE, MASKED, SPARSE, LIMIT):
            self.run(name)
            with flop_counter() as counter:
                peak, _ = peak_memory(partial(self.run, name), device)
            found[name] = {
                "executed_flops_per_token": counter.get_total_flops() / self.ids.numel(),
                "peak_bytes": peak,
            }
        found[LIMIT]["layers_removed"] = len(self.removed)
        found[LIMIT]["layers_routed"] = len(self.models.routed_layers)
        return found
