"""Case ``lossless``: drafting by the routed path and verifying at full depth, against full depth alone."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerroute.benchmark.case import Check, Comparison, Prepared, Value
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError
from layerroute.evaluation.loading import load_model
from layerroute.evaluation.texts import read_texts
from layerroute.skipping import LosslessGeneration, generate_lossless, router_disabled

DESCRIPTION = """\
Continue prompts (the first tokens of documents) at full depth, greedily, and by lossless decoding. Every continuation
must be the same, token for token; then the first of them are timed. The record holds the share of drafted tokens that
was accepted, over all prompts."""

FULL, LOSSLESS = "full depth", "lossless"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument("router", metavar="ROUTER", help="folder of a router that skips layers")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="documents: txt, jsonl (also .xz, .gz) or parquet"
    )
    parser.add_argument("--prompts", type=int, default=50, metavar="N", help="prompts compared (default: 50)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="documents left out before (default: 0)"
    )
    parser.add_argument("--prompt-tokens", type=int, default=48, metavar="N", help="default: 48")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--draft-tokens", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument(
        "--timed", type=int, default=2, metavar="N", help="prompts that are timed (default: 2)"
    )


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row."""
    for name in ("prompts", "prompt_tokens", "new_tokens", "draft_tokens", "timed"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give at least 1.")
    if not Path(arguments.data).is_file():
        raise UserError(f"--data: there is no file {arguments.data}")
    return [
        Comparison(
            title=f"{arguments.prompts} prompts",
            labels={
                "router": Path(arguments.router).name,
                "data": Path(arguments.data).name,
                "prompts": arguments.prompts,
                "first": arguments.first,
                "prompt_tokens": arguments.prompt_tokens,
                "new_tokens": arguments.new_tokens,
                "draft_tokens": arguments.draft_tokens,
            },
            baseline=FULL,
            tokens=min(arguments.timed, arguments.prompts) * arguments.new_tokens,
            device=torch.device("cpu"),
            prepare=partial(_prepare, arguments),
        )
    ]


def _prepare(arguments: argparse.Namespace) -> Prepared:
    loaded = load_model(arguments.router, device="cpu")
    prompts = _prompts(loaded.tokenizer, arguments)
    new = arguments.new_tokens
    model: Any = loaded.model

    def full(ids: Tensor) -> list[int]:
        with torch.inference_mode(), router_disabled(model):
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        return [int(token) for token in out[0, ids.shape[1] :]]

    ends = model.generation_config.eos_token_id
    ends = () if ends is None else [ends] if isinstance(ends, int) else ends

    def lossless(ids: Tensor) -> LosslessGeneration:
        return generate_lossless(
            model, ids, max_new_tokens=new, draft_tokens=arguments.draft_tokens, eos_token_ids=ends
        )

    counted: dict[str, Value] = {}

    def gate() -> list[Check]:
        results = [lossless(ids) for ids in prompts]
        drafted, accepted = (sum(getattr(r, name) for r in results) for name in ("drafted", "accepted"))
        counted["acceptance"] = accepted / drafted if drafted else None
        counted["tokens_per_full_depth_pass"] = sum(len(r.tokens) for r in results) / sum(
            r.passes for r in results
        )
        return [
            Check(
                what=f"tokens of prompt {number}, lossless and full depth",
                deviation=_differing(result.tokens, full(ids)),
                tolerance=0.0,
            )
            for number, (ids, result) in enumerate(zip(prompts, results, strict=True), start=arguments.first)
        ]

    timed = prompts[: arguments.timed]
    arms: Mapping[str, Callable[[], object]] = {
        FULL: lambda: [full(ids) for ids in timed],
        LOSSLESS: lambda: [lossless(ids) for ids in timed],
    }
    return Prepared(gate=gate, arms=arms, count=lambda: {LOSSLESS: counted})


def _differing(mine: list[int], theirs: list[int]) -> float:
    """Places in which two texts differ."""
    shared = sum(a != b for a, b in zip(mine, theirs, strict=False))
    return float(shared + abs(len(mine) - len(theirs)))


def _prompts(tokenizer: Any, arguments: argparse.Namespace) -> list[Tensor]:
    """The first tokens of documents that have as many."""
    found: list[Tensor] = []
    encoder = DocumentEncoder.of(tokenizer)
    passed = 0
    for document in read_texts([arguments.data]):
        ids = torch.tensor([encoder.opening(document)])
        if ids.shape[1] < arguments.prompt_tokens:
            continue
        passed += 1
        if passed > arguments.first:
            found.append(ids[:, : arguments.prompt_tokens])
        if len(found) == arguments.prompts:
            return found
    raise UserError(
        f"--data {arguments.data} has {passed} documents of {arguments.prompt_tokens} tokens, "
        f"{arguments.first + arguments.prompts} are asked for"
    )
