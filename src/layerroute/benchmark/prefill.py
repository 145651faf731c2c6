"""Case ``prefill``: reading a prompt with a model whose tokens skip layers."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from layerroute.benchmark import skipping
from layerroute.benchmark.case import Comparison, Prepared
from layerroute.benchmark.skipping import Result, Setting

DESCRIPTION = """\
Time the reading of prompts, as `generate` does it (keys and values go to a cache, logits of the last token only; with
--scoring no cache, logits of all tokens): plain transformers, the routed model in masked and in sparse execution by
forced random decisions, and the structural limit, the same model with that share of the routed layers removed. Before
that, sparse must equal masked, a switched-off router the plain model, and layers that all tokens skip layers that are
not there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    skipping.add_arguments(parser, "4x512 1x2048")
    parser.add_argument("--scoring", action="store_true", help="logits of all tokens, and no cache")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and share."""
    setting = skipping.setting_of(arguments)
    sizes = [skipping.size_of(text) for text in arguments.sizes]
    return [
        Comparison(
            title=f"{rows}x{tokens}, {share:.0%} skipped",
            labels={
                "batch": rows,
                "time": tokens,
                "skip": share,
                "scoring": arguments.scoring,
                **setting.labels(),
            },
            baseline=skipping.DENSE,
            tokens=rows * tokens,
            prepare=partial(_prepare, setting, rows, tokens, share, scoring=arguments.scoring),
            device=setting.device,
        )
        for rows, tokens in sizes
        for share in arguments.skip
    ]


def _prepare(setting: Setting, rows: int, tokens: int, share: float, *, scoring: bool) -> Prepared:
    generator = torch.Generator().manual_seed(setting.seed)
    vocabulary = skipping.SHAPES[setting.shape]["vocab_size"]
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator).to(setting.device)
    work = partial(_scoring if scoring else _reading, ids)
    arms = skipping.arms(setting, share, work, rows=rows, first=0, last=tokens)
    return arms.prepared(setting, rows * tokens, _held)


def _reading(ids: Tensor, model: PreTrainedModel) -> Callable[[], Result]:
    def call() -> Result:
        cache = DynamicCache(config=model.config)
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        held = skipping.keys_and_values(cache)
        return {"logits": output.logits, **{f"cached tensor {i}": part for i, part in enumerate(held)}}

    return call


def _scoring(ids: Tensor, model: PreTrainedModel) -> Callable[[], Result]:
    return lambda: {"logits": model(ids, use_cache=False).logits}


def _held(result: Result) -> int:
    return sum(part.numel() * part.element_size() for name, part in result.items() if name != "logits")
