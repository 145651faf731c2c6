"""The model's own text as one more kind: what it samples after a random first token covers all that it was trained on.

Fits on a few kinds of text do not carry over to others (prose alone: code), and nobody has all kinds at hand. The model
has: language models sampled from random first tokens give their training mixture back (Liu et al. 2023, LLM-QAT,
arXiv 2305.17888).
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from layerroute.precision import autocast, choose_precision
from layerroute.skipping.calibration.configuration import CalibrationConfig
from layerroute.skipping.calibration.windows import in_turn

BATCH = 48
"""Windows that are sampled at once."""


def sample_own_text(
    model: Any,
    config: CalibrationConfig,
    given: int,
    *,
    advance: Callable[[float], None] = lambda share: None,
) -> Int[Tensor, "n T"]:
    """Sample windows at temperature 1, each after a first token drawn from the vocabulary.

    ``config.sink_ids`` and end-of-text tokens do not occur: a window is one text.

    Args:
        model: a transformers causal LM without a router, in inference mode.
        config: of the calibration; ``own_text`` is the share of all windows that these are to be.
        given: how many windows of text there are beside them.
        advance: told the share done.
    """
    count, length = round(given * config.own_text / (1 - config.own_text)), config.length
    if not count:
        return torch.empty(0, length, dtype=torch.long, device=model.device)
    own = model.generation_config.eos_token_id
    ends = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    never = sorted({*config.sink_ids, *ends})
    rows = model.get_input_embeddings().num_embeddings
    first = torch.tensor([token for token in range(rows) if token not in set(never)])
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        max_new_tokens=length - 1,
        min_new_tokens=length - 1,
        suppress_tokens=never or None,
        pad_token_id=0,
    )
    precision = choose_precision(config.precision, model.device).name
    done = []
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(config.seed)
        starts = first[torch.randperm(len(first))[torch.arange(count) % len(first)]].unsqueeze(1)
        for part in starts.to(model.device).split(BATCH):
            with autocast(precision, model.device):
                done.append(
                    model.generate(part, attention_mask=torch.ones_like(part), generation_config=settings)
                )
            advance(sum(map(len, done)) / count)
    return torch.cat(done)


def with_own_text(given: Int[Tensor, "N T"], own: Int[Tensor, "n T"]) -> Int[Tensor, "M T"]:
    """Windows of text and the model's own, spread evenly among them."""
    total = len(given) + len(own)
    turns = in_turn([len(given), len(own)])
    both = iter(given), iter(own.to(given.device))
    return torch.stack([next(both[next(turns)]) for _ in range(total)])
