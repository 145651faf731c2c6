"""Case ``hybrid``: a model whose tokens take Gated DeltaNet or softmax attention, masked and sparse.

`bench calibrate --model hybrid` times the same in every phase, on a smaller model.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from layerroute.argument_types import add_choice, add_number, rate
from layerroute.benchmark.case import Case, Check, Comparison, Prepared, agree
from layerroute.benchmark.options import DTYPES, TOLERANCE, add_machine, add_shares, add_sizes, percent
from layerroute.benchmark.phases import (
    MASKED,
    SPARSE,
    Way,
    Work,
    count_all,
    decoding,
    gradients,
    reading,
    scoring,
)
from layerroute.benchmark.skipping_models import draw
from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.hybrid.hybrid_config import CHOICES
from layerroute.precision import choose_device

DESCRIPTION = """\
Time the reading of prompts (keys, values and states go to a cache, logits of the last token only) by the hybrid model
(hidden 768, 12 heads, layers gdn routed routed softmax; weights at random): both paths of every token computed (masked)
against chosen paths only (sparse), by forced random decisions. Before that, logits and cached tensors must agree.
--peers times two models without routing beside it, of as many layers: all softmax, which then is what the others are
held against, and three Gated DeltaNet layers to one softmax layer."""

NEW_TOKENS = 4
ALL_SOFTMAX = "all softmax"
PEERS = {ALL_SOFTMAX: ["softmax"] * 4, "3:1": ["gdn", "gdn", "gdn", "softmax"]}
_VOCABULARY = 1024
_TRAIN_TOLERANCE = {"fp32": 5e-4, "bf16": 5e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    add_sizes(parser, "1x16384")
    add_shares(parser, "--rates", [0.25], rate, "of tokens on softmax")
    add_choice(parser, "--context", CHOICES["context"], "full_context", "what each path sees")
    add_number(parser, "--hidden-size", 768, "width, a multiple of 64", least=64, metavar="HIDDEN_SIZE")
    parser.add_argument("--peers", action="store_true", help="also time two models without routing")
    add_machine(parser, "weights, tokens and decisions")


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """One row for each size and rate."""
    if arguments.hidden_size % 64:
        raise UserError(f"--hidden-size: {arguments.hidden_size} is not a multiple of 64.")
    return [
        Comparison(
            title=f"{rows}x{tokens}, {percent(softmax)} softmax",
            labels={
                "batch": rows,
                "time": tokens,
                "rate": softmax,
                "context": arguments.context,
                "hidden_size": arguments.hidden_size,
                "dtype": arguments.dtype,
            },
            baseline=ALL_SOFTMAX if arguments.peers else MASKED,
            tokens=rows * tokens,
            device=choose_device(arguments.device),
            prepare=partial(prepare, arguments, "prefill", rows, tokens, 1.0 - softmax),
        )
        for rows, tokens in arguments.sizes
        for softmax in arguments.rates
    ]


CASES = {"hybrid": Case(description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons)}


def prepare(arguments: argparse.Namespace, phase: str, rows: int, tokens: int, skipped: float) -> Prepared:
    """Both executions of a model with random weights, of whose tokens the share ``skipped`` takes GDN; and peers."""
    device, training = choose_device(arguments.device), phase == "train"
    new = NEW_TOKENS if phase == "decode" else 0

    def build(pattern: list[str] | None = None) -> Any:
        torch.manual_seed(arguments.seed)
        config = HybridConfig(
            vocab_size=_VOCABULARY,
            hidden_size=arguments.hidden_size,
            num_attention_heads=arguments.hidden_size // 64,
            layer_pattern=pattern,
            context=arguments.context,
            routing={"estimator": "selected"} if training else {},
        )
        made: Any = HybridForCausalLM(config).train(training)
        return made.to(device=device, dtype=DTYPES[arguments.dtype])

    model = build()
    ids = torch.randint(_VOCABULARY, (rows, tokens + new)).to(device)
    others = {name: build(pattern) for name, pattern in PEERS.items() if arguments.peers}
    choice = draw(rows, tokens + new, len(model.config.sites), skipped, arguments.seed)
    works: dict[str, Work] = {
        "prefill": partial(reading, ids),
        "decode": partial(decoding, ids, new, copied=True),
        "train": partial(gradients, ids, dict(model.named_parameters())),
    }
    arms = {one: Way.routed(model, choice, one).at(works[phase]) for one in (MASKED, SPARSE)}
    arms |= {name: Way(other).at(works[phase]) for name, other in others.items()}
    tolerance = (TOLERANCE if phase == "prefill" else _TRAIN_TOLERANCE)[arguments.dtype]

    def gate() -> Iterator[Check]:
        masked, sparse = arms[MASKED](), arms[SPARSE]()
        yield from agree("{} of sparse and masked", sparse, masked, tolerance)
        for name, other in others.items():  # nothing computes the same: what it reads is what it scores
            scored = scoring(ids, other)()["logits"][:, -1:]
            yield Check.compare(
                f"last logits of {name}, cached or not", arms[name]()["logits"], scored, tolerance
            )

    return Prepared(gate=gate, arms=arms, count=lambda: count_all(arms, rows * tokens, device))
