"""Case ``train-skipping``: training steps of a model that skips layers, sparse against masked."""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from layerroute.benchmark import skipping
from layerroute.benchmark.case import Check, Comparison, Prepared
from layerroute.benchmark.skipping import DENSE, MASKED, SPARSE, Setting
from layerroute.benchmark.skipping_models import Models, draw
from layerroute.objectives.language_model import cross_entropy, shift_labels
from layerroute.skipping import executed, force_decision, get_router

DESCRIPTION = """\
Time training steps (forward, backward, clipping, AdamW over all parameters) of a model whose tokens skip layers, with
the estimator `selected`: plain transformers, everything computed (masked) and chosen paths only (sparse), by forced
random decisions. Before that, masked and sparse must give the same gradients."""

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

    def gradients(self) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        logits = self.model(self.ids, use_cache=False).logits
        cross_entropy(logits, shift_labels(self.ids)).backward()

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
    models.routed.train()
    models.plain.train()
    choice = draw(rows, tokens, models.sites, share, setting.seed)
    routed, plain = Step(models.routed, ids), Step(models.plain, ids)

    def run(execution: str) -> None:
        with executed(models.routed, execution), force_decision(models.routed, choice):
            routed()

    return Prepared(
        gate=lambda: list(_checks(models, routed, choice, _TOLERANCE[setting.dtype])),
        arms={DENSE: plain, MASKED: partial(run, MASKED), SPARSE: partial(run, SPARSE)},
    )


def _checks(models: Models, step: Step, choice: Tensor, tolerance: float) -> Iterator[Check]:
    """Gradients of a few layers' parameters and of the router's."""
    layers = models.routed_layers
    chosen = {f".{layers[i]}." for i in (0, len(layers) // 2, -1)}
    named = {
        name: value
        for name, value in models.routed.named_parameters()
        if name.startswith("layerroute") or any(f"layers{one}" in name for one in chosen)
    }
    assert any(name.startswith("layerroute") for name in named)
    found: list[dict[str, Tensor]] = []
    for execution in (MASKED, SPARSE):
        with executed(models.routed, execution), force_decision(models.routed, choice):
            step.gradients()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()})
    assert get_router(models.routed).training
    for name, expected in found[0].items():
        yield Check.compare(f"gradients of {name}, sparse and masked", found[1][name], expected, tolerance)
