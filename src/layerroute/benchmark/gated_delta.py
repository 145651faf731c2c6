"""Case ``gated-delta``: our chunked gated delta rule, transformers' chunked one, and the plain recurrence."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from layerroute.benchmark.case import Check, Comparison, Prepared, each_pair
from layerroute.errors import UserError, nearest
from layerroute.ops.gated_delta import gated_delta_rule

DESCRIPTION = """\
Time the gated delta rule forward, and forward + backward, against the chunked PyTorch function of transformers
(qwen3_next) and, at short lengths, against the plain recurrence. Before that, outputs and gradients of all three must
agree."""

OURS, THEIRS, RECURRENT = "layerroute", "transformers", "recurrent"
DEFAULT_SIZES = "4x256x4x64 4x256x12x64 4x1024x8x64 1x4096x8x64 4x4096x12x64"
PASSES = ("forward", "forward+backward")
_TOLERANCE = 2e-4  # fp32 round-off over thousands of tokens
_COMPARED_TOKENS = 256  # gradients of the recurrence are compared over this many: it keeps a state a token

Inputs = tuple[Tensor, ...]
Rule = Callable[..., tuple[Tensor, Tensor | None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=DEFAULT_SIZES.split(),
        metavar="BxTxHxK",
        help="batch x tokens x heads x key dimension (= value dimension); default: %(default)s",
    )
    parser.add_argument(
        "--passes",
        nargs="+",
        default=list(PASSES),
        metavar="PASS",
        help=f"{' or '.join(PASSES)} (default: both)",
    )
    parser.add_argument(
        "--recurrent-up-to",
        type=int,
        default=256,
        metavar="T",
        help="time the plain recurrence too, up to this length (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: %(default)s)")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and pass."""
    sizes = [_size(text) for text in arguments.sizes]
    for name in arguments.passes:
        if name not in PASSES:
            raise UserError(f"--passes: {name!r} is not a pass.{nearest(name, PASSES)}")
    return [
        Comparison(
            title=f"{b}x{t}x{h}x{k} {name}",
            labels={"batch": b, "time": t, "heads": h, "head_dim": k, "pass": name},
            baseline=THEIRS,
            tokens=b * t,
            device=torch.device("cpu"),
            prepare=partial(
                _prepare, (b, t, h, k), name, arguments.seed, recurrent=t <= arguments.recurrent_up_to
            ),
        )
        for b, t, h, k in sizes
        for name in arguments.passes
    ]


def _size(text: str) -> tuple[int, int, int, int]:
    try:
        batch, time, heads, key_dim = (int(word) for word in text.split("x"))
    except ValueError:
        raise UserError(
            f"--sizes: {text!r} is not batch x tokens x heads x dimension, as 4x1024x8x64."
        ) from None
    if min(batch, time, heads, key_dim) < 1:
        raise UserError(f"--sizes: {text!r} has a number below 1.")
    return batch, time, heads, key_dim


def _prepare(size: tuple[int, int, int, int], which: str, seed: int, *, recurrent: bool) -> Prepared:
    inputs, upstream = _inputs(size, seed)
    rules: dict[str, Rule] = {
        OURS: partial(gated_delta_rule, normalize_qk=True, backend="chunked"),
        THEIRS: partial(torch_chunk_gated_delta_rule, use_qk_l2norm_in_kernel=True),
    }
    plain: Rule = partial(gated_delta_rule, normalize_qk=True, backend="reference")
    if recurrent:
        rules[RECURRENT] = plain
    once = _forward if which == "forward" else partial(_forward_backward, upstream=upstream)
    return Prepared(
        gate=lambda: list(_checks(rules, plain, inputs, upstream)),
        arms={name: partial(once, rule, inputs) for name, rule in rules.items()},
    )


def _inputs(size: tuple[int, int, int, int], seed: int) -> tuple[Inputs, Tensor]:
    """Query, key, value, log decay and beta of a fresh Gated DeltaNet's magnitude, and a gradient of the output."""
    batch, time, heads, key_dim = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value, upstream = (normal(batch, time, heads, key_dim) for _ in range(4))
    log_decay = -0.1 * F.softplus(normal(batch, time, heads))
    beta = torch.sigmoid(normal(batch, time, heads))
    return tuple(t.requires_grad_() for t in (query, key, value, log_decay, beta)), upstream


@torch.no_grad()
def _forward(rule: Rule, inputs: Inputs) -> Tensor:
    return rule(*inputs)[0]


def _forward_backward(rule: Rule, inputs: Inputs, *, upstream: Tensor) -> tuple[Tensor, ...]:
    output = rule(*inputs)[0]
    return output, *torch.autograd.grad(output, inputs, upstream)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep back the advice to install a faster kernel: its PyTorch form is what is measured."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _checks(rules: dict[str, Rule], plain: Rule, inputs: Inputs, upstream: Tensor) -> Iterator[Check]:
    names = ("output", "query", "key", "value", "log_decay", "beta")

    def everything(rule: Rule, tensors: Inputs, gradient: Tensor, who: str) -> dict[str, Tensor]:
        results = _forward_backward(rule, tensors, upstream=gradient)
        kinds = ["outputs", *(f"gradients of {name}" for name in names[1:])]
        return {f"{kind} of {OURS} and {who}": t for kind, t in zip(kinds, results, strict=True)}

    ours, theirs = rules[OURS], rules[THEIRS]
    with _quiet_transformers():
        witness = everything(theirs, inputs, upstream, THEIRS)
    yield from each_pair(everything(ours, inputs, upstream, THEIRS), witness, _TOLERANCE)
    start = [t[:, :_COMPARED_TOKENS] for t in (*inputs, upstream)]
    leaves = tuple(t.detach().requires_grad_() for t in start[:-1])
    yield from each_pair(
        everything(ours, leaves, start[-1], RECURRENT),
        everything(plain, leaves, start[-1], RECURRENT),
        _TOLERANCE,
    )
    yield Check.compare(
        f"outputs of {OURS} and {RECURRENT} at full length",
        _forward(ours, inputs),
        _forward(plain, inputs),
        _TOLERANCE,
    )
