"""What `bench calibrate --model hybrid` times: prefill, decoding and training, masked and sparse."""

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from layerroute.benchmark import hybrid
from layerroute.benchmark.case import Check, Comparison, Prepared, each_pair
from layerroute.benchmark.skipping import MASKED, SPARSE, size_of
from layerroute.benchmark.skipping_models import draw
from layerroute.errors import UserError
from layerroute.precision import choose_device
from layerroute.routing import executed, forced, table

_NEW_TOKENS = 4
_TOLERANCE = {"fp32": 5e-4, "bf16": 5e-2}

Call = Callable[[], Mapping[str, Tensor]]


def comparisons(arguments: argparse.Namespace) -> Iterator[Comparison]:
    """One row for each phase and share of tokens on GDN; arguments are those of ``bench calibrate``."""
    device = choose_device(arguments.device)
    options = argparse.Namespace(**{**vars(arguments), "hidden_size": 256, "context": "full_context"})
    if (arguments.unit, arguments.kv, arguments.skip_path) != ("block", "project", "identity"):
        raise UserError("--unit, --kv and --skip-path are for models that skip layers; leave them out here.")
    sizes = {"prefill": arguments.sizes, "decode": [arguments.decode_size], "train": [arguments.train_size]}
    for share in arguments.skip:
        if not 0.0 < share < 1.0:
            raise UserError(f"--skip: {share} is not a share between 0 and 1.")
    for phase in arguments.phases:
        for rows, tokens in map(size_of, sizes[phase]):
            for share in arguments.skip:
                yield Comparison(
                    title=f"{phase} {rows}x{tokens}, {share:.0%} on GDN",
                    labels={
                        "batch": rows,
                        "time": tokens,
                        "skip": share,
                        "phase": phase,
                        "model": "hybrid",
                        "dtype": options.dtype,
                    },
                    baseline=MASKED,
                    tokens=rows * (_NEW_TOKENS if phase == "decode" else tokens),
                    device=device,
                    prepare=partial(_prepare, options, phase, rows, tokens, share, device),
                )


def _prepare(
    options: argparse.Namespace, phase: str, rows: int, tokens: int, share: float, device: torch.device
) -> Prepared:
    new = _NEW_TOKENS if phase == "decode" else 0
    routing = {"estimator": "selected"} if phase == "train" else {}
    model = hybrid.model_of(options, device, routing=routing).train(phase == "train")
    ids = torch.randint(hybrid.VOCABULARY, (rows, tokens + new)).to(device)
    sites = tuple(model.config.sites)
    chooser = table(draw(rows, tokens + new, len(sites), share, options.seed), sites)
    work = {"prefill": _prefill, "decode": _decode, "train": _train}[phase]
    calls = {name: partial(work, model, ids, chooser, name, state={}) for name in (MASKED, SPARSE)}

    def gate() -> Sequence[Check]:
        results = {
            name: {f"{key} of sparse and masked": value for key, value in call().items()}
            for name, call in calls.items()
        }
        return list(each_pair(results[SPARSE], results[MASKED], _TOLERANCE[options.dtype]))

    return Prepared(gate=gate, arms=calls)


def _prefill(
    model: Any, ids: Tensor, chooser: Any, execution: str, *, state: dict[str, Any]
) -> Mapping[str, Tensor]:
    del state
    with torch.inference_mode(), executed(model, execution), forced(model, chooser):
        cache = DynamicCache(config=model.config)
        return {"logits": model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits}


def _decode(
    model: Any, ids: Tensor, chooser: Any, execution: str, *, state: dict[str, Any]
) -> Mapping[str, Tensor]:
    """Decode behind a copy of the cache: the state of GDN cannot be taken back. Both arms pay for the copy."""
    length = ids.shape[1]
    with torch.inference_mode(), executed(model, execution), forced(model, chooser):
        if "cache" not in state:
            state["cache"] = DynamicCache(config=model.config)
            model(ids[:, : length - _NEW_TOKENS], past_key_values=state["cache"], use_cache=True)
        cache = copy.deepcopy(state["cache"])
        steps = [
            model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            for t in range(length - _NEW_TOKENS, length)
        ]
    return {"logits": torch.cat(steps, dim=1)}


def _train(
    model: Any, ids: Tensor, chooser: Any, execution: str, *, state: dict[str, Any]
) -> Mapping[str, Tensor]:
    """Forward and backward with ``selected``; gradients of the routed layers and of the router."""
    del state
    model.zero_grad()
    with executed(model, execution), forced(model, chooser):
        loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    # Parameters that sparse execution did not touch have no gradient there, and one of zeros in masked execution.
    return {"loss": loss.detach()} | {
        f"gradients of {name}": torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in model.named_parameters()
    }
