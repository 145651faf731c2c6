"""Case ``decode``: token after token with a model whose tokens skip layers."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from layerroute.benchmark import skipping
from layerroute.benchmark.case import Comparison, Prepared
from layerroute.benchmark.skipping import Result, Setting
from layerroute.errors import UserError

DESCRIPTION = """\
Time decoding: one call of the model for each new token of a row, behind a cache that holds T tokens. Plain
transformers, the routed model in masked and in sparse execution by forced random decisions, and the structural limit,
the same model with that share of the routed layers removed. Keys and values that waited are projected within the time
measured. Before that, sparse must equal masked at every new token, a switched-off router the plain model, and layers
that all tokens skip layers that are not there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    skipping.add_arguments(parser, "1x256")
    parser.add_argument(
        "--new-tokens", type=int, default=16, metavar="N", help="tokens decoded a call (default: %(default)s)"
    )
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic", help="default: dynamic")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and share."""
    setting = skipping.setting_of(arguments)
    new, static = arguments.new_tokens, arguments.cache == "static"
    if new < 1:
        raise UserError(f"--new-tokens is {new}; give at least 1.")
    if static and setting.skip.kv == "evict":
        raise UserError("--cache static cannot hold a different number of keys a layer; use --kv project.")
    return [
        Comparison(
            title=f"{rows}x{tokens}+{new}, {share:.0%} skipped",
            labels={
                "batch": rows,
                "time": tokens,
                "new_tokens": new,
                "skip": share,
                "cache": arguments.cache,
                **setting.labels(),
            },
            baseline=skipping.DENSE,
            tokens=rows * new,
            prepare=partial(_prepare, setting, rows, tokens, new, share, static=static),
            device=setting.device,
        )
        for rows, tokens in map(skipping.size_of, arguments.sizes)
        for share in arguments.skip
    ]


def _prepare(setting: Setting, rows: int, tokens: int, new: int, share: float, *, static: bool) -> Prepared:
    generator = torch.Generator().manual_seed(setting.seed)
    vocabulary = skipping.SHAPES[setting.shape]["vocab_size"]
    ids = torch.randint(vocabulary, (rows, tokens + new), generator=generator).to(setting.device)
    work = partial(_decoding, ids, new, static)
    arms = skipping.arms(setting, share, work, rows=rows, first=tokens, last=tokens + new)
    return arms.prepared(setting, rows * new, _held)


def _decoding(ids: Tensor, new: int, static: bool, model: PreTrainedModel) -> Callable[[], Result]:
    """Fill a cache, and return the call that decodes behind it, and takes back what it added."""
    length = ids.shape[1]
    options: dict[str, Any] = {"config": model.config}
    cache = StaticCache(max_cache_len=length, **options) if static else DynamicCache(**options)
    with torch.inference_mode():
        model(ids[:, : length - new], past_key_values=cache, use_cache=True, logits_to_keep=1)

    def call() -> Result:
        logits = [
            model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            for t in range(length - new, length)
        ]
        held = skipping.keys_and_values(cache)
        _take_back(cache, new, length)
        return {"logits": torch.cat(logits, dim=1), **{f"cached tensor {i}": x for i, x in enumerate(held)}}

    return call


def _take_back(cache: Any, new: int, length: int) -> None:
    if isinstance(cache, StaticCache):
        layers: list[Any] = cache.layers
        for layer in layers:
            layer.cumulative_length.fill_(length - new)
    else:
        cache.crop(-new)


def _held(result: Result) -> int:
    return sum(part.numel() * part.element_size() for name, part in result.items() if name != "logits")
