"""Case ``lossless``: drafting by the routed path and verifying at full depth, against full depth alone."""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layerroute.argument_types import add_number
from layerroute.benchmark.case import Case, Check, Comparison, Prepared, Value
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
_NUMBERS = (
    ("--prompts", 50, 1, "prompts to compare"),
    ("--first", 0, 0, "documents to leave out at the beginning"),
    ("--prompt-tokens", 48, 1, "tokens of a prompt"),
    ("--new-tokens", 32, 1, "tokens to add"),
    ("--draft-tokens", 4, 1, "tokens drafted at a time"),
    ("--timed", 2, 1, "prompts to time"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument("router", metavar="ROUTER", help="folder of a router that skips layers")
    parser.add_argument(
        "--data", required=True, metavar="FILE", help="documents: txt, jsonl (also .xz, .gz) or parquet"
    )
    for option, default, least, what in _NUMBERS:
        add_number(parser, option, default, what, least=least)


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """One row."""
    if not Path(arguments.data).is_file():
        raise UserError(f"--data: there is no file {arguments.data}")
    numbers = ("prompts", "first", "prompt_tokens", "new_tokens", "draft_tokens")
    return [
        Comparison(
            title=f"{arguments.prompts} prompts",
            labels={
                "router": Path(arguments.router).name,
                "data": Path(arguments.data).name,
                **{name: getattr(arguments, name) for name in numbers},
            },
            baseline=FULL,
            tokens=min(arguments.timed, arguments.prompts) * arguments.new_tokens,
            device=torch.device("cpu"),
            prepare=partial(_prepare, arguments),
        )
    ]


CASES = {"lossless": Case(description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons)}


def _prepare(arguments: argparse.Namespace) -> Prepared:
    loaded = load_model(arguments.router, device="cpu")
    prompts = _prompts(loaded.tokenizer, arguments)
    model: Any = loaded.model

    def full(ids: Tensor) -> list[int]:
        new = {"max_new_tokens": arguments.new_tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode(), router_disabled(model):
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **new)
        return [int(token) for token in out[0, ids.shape[1] :]]

    lossless = partial(
        generate_lossless,
        model,
        max_new_tokens=arguments.new_tokens,
        draft_tokens=arguments.draft_tokens,
        eos_token_ids=loaded.end_ids,
    )
    results: list[LosslessGeneration] = []

    def gate() -> Iterator[Check]:
        results[:] = [lossless(ids) for ids in prompts]
        for number, (ids, result) in enumerate(zip(prompts, results, strict=True), start=arguments.first):
            what = f"tokens of prompt {number}, lossless and full depth"
            yield Check(what=what, deviation=_differing(result.tokens, full(ids)), tolerance=0.0)

    def count() -> dict[str, dict[str, Value]]:
        drafted, accepted, passes = (
            sum(getattr(one, name) for one in results) for name in ("drafted", "accepted", "passes")
        )
        return {
            LOSSLESS: {
                "acceptance": accepted / drafted if drafted else None,
                "tokens_per_full_depth_pass": sum(len(one.tokens) for one in results) / passes,
            }
        }

    timed = prompts[: arguments.timed]
    arms = {FULL: lambda: [full(ids) for ids in timed], LOSSLESS: lambda: [lossless(ids) for ids in timed]}
    # A text may end before it has all the tokens asked for.
    return Prepared(
        gate=gate,
        arms=arms,
        count=count,
        tokens=lambda: sum(len(one.tokens) for one in results[: len(timed)]),
    )


def _differing(mine: list[int], theirs: list[int]) -> float:
    """Places in which two texts differ."""
    shared = sum(a != b for a, b in zip(mine, theirs, strict=False))
    return float(shared + abs(len(mine) - len(theirs)))


def _prompts(tokenizer: Any, arguments: argparse.Namespace) -> list[Tensor]:
    """The first tokens of documents that have as many."""
    encoder, length = DocumentEncoder.of(tokenizer), arguments.prompt_tokens
    wanted, found = arguments.first + arguments.prompts, []
    for document in read_texts([arguments.data]):
        ids = torch.tensor([encoder.opening(document)])
        if ids.shape[1] >= length:
            found.append(ids[:, :length])
        if len(found) == wanted:
            return found[arguments.first :]
    raise UserError(
        f"--data {arguments.data} has {len(found)} documents of {length} tokens, {wanted} are asked for"
    )
