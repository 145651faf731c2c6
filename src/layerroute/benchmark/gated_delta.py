"""Case ``gated-delta``: our chunked gated delta rule, transformers' chunked one, and the plain recurrence."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from layerroute.benchmark.case import Case, Check, Comparison, Prepared, agree
from layerroute.benchmark.operators import Operator, outputs, results
from layerroute.benchmark.options import add_passes, add_sizes
from layerroute.ops.gated_delta import gated_delta_rule

DESCRIPTION = """\
Time the gated delta rule forward, and forward + backward, against the chunked PyTorch function of transformers
(qwen3_next) and, at short lengths, against the plain recurrence. Before that, outputs and gradients of all three must
agree."""

OURS, THEIRS, RECURRENT = "layerroute", "transformers", "recurrent"
_TOLERANCE = 2e-4  # fp32 round-off over thousands of tokens
_COMPARED_TOKENS = 256  # gradients of the recurrence are compared over this many: it keeps a state a token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    add_sizes(parser, "4x256x4x64 4x256x12x64 4x1024x8x64 1x4096x8x64 4x4096x12x64", heads=True)
    add_passes(parser)
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
    return [
        Comparison(
            title=f"{'x'.join(map(str, size))} {name}",
            labels={**dict(zip(("batch", "time", "heads", "head_dim"), size, strict=True)), "pass": name},
            baseline=THEIRS,
            tokens=size[0] * size[1],
            device=torch.device("cpu"),
            prepare=partial(_prepare, size, name, arguments.seed, size[1] <= arguments.recurrent_up_to),
        )
        for size in arguments.sizes
        for name in arguments.passes
    ]


CASES = {"gated-delta": Case(description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons)}


def _prepare(size: tuple[int, int, int, int], which: str, seed: int, recurrent: bool) -> Prepared:
    inputs, upstream = _inputs(size, seed)
    rules: dict[str, Operator] = {
        OURS: partial(_ours, backend="chunked"),
        THEIRS: lambda *tensors: torch_chunk_gated_delta_rule(*tensors, use_qk_l2norm_in_kernel=True)[0],
    }
    if recurrent:
        rules[RECURRENT] = partial(_ours, backend="reference")
    backward = None if which == "forward" else upstream
    return Prepared(
        gate=partial(_gate, rules[OURS], rules[THEIRS], inputs, upstream),
        arms={name: partial(results, rule, inputs, backward) for name, rule in rules.items()},
    )


def _ours(*tensors: Tensor, backend: Any) -> Tensor:
    return gated_delta_rule(*tensors, normalize_qk=True, backend=backend)[0]


def _inputs(size: tuple[int, int, int, int], seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a fresh Gated DeltaNet's magnitude, and a gradient of the output."""
    batch, time, heads, width = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value, upstream = (normal(batch, time, heads, width) for _ in range(4))
    made = {"query": query, "key": key, "value": value}
    made["log_decay"] = -0.1 * F.softplus(normal(batch, time, heads))
    made["beta"] = torch.sigmoid(normal(batch, time, heads))
    return {name: tensor.requires_grad_() for name, tensor in made.items()}, upstream


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep back the advice to install a faster kernel: its PyTorch form is what is measured."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _gate(ours: Operator, theirs: Operator, inputs: dict[str, Tensor], upstream: Tensor) -> Iterator[Check]:
    plain = partial(_ours, backend="reference")
    with _quiet_transformers():
        witness = results(theirs, inputs, upstream)
    yield from agree(f"{{}} of {OURS} and {THEIRS}", results(ours, inputs, upstream), witness, _TOLERANCE)
    leaves = {name: one[:, :_COMPARED_TOKENS].detach().requires_grad_() for name, one in inputs.items()}
    start = upstream[:, :_COMPARED_TOKENS]
    yield from agree(
        f"{{}} of {OURS} and {RECURRENT}",
        results(ours, leaves, start),
        results(plain, leaves, start),
        _TOLERANCE,
    )
    yield Check.compare(
        f"outputs of {OURS} and {RECURRENT} at full length",
        outputs(ours, inputs),
        outputs(plain, inputs),
        _TOLERANCE,
    )
