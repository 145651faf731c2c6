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

from layerroute.argument_types import add_number
from layerroute.benchmark.case import Case, Check, Comparison, Prepared, agree
from layerroute.benchmark.operators import Operator, outputs, results
from layerroute.benchmark.options import DTYPES, TOLERANCE, add_machine, add_passes, add_sizes
from layerroute.ops.gated_delta import gated_delta_rule
from layerroute.ops.gated_delta.chunked import gated_delta_flops
from layerroute.ops.gated_delta.fla import obstacle
from layerroute.precision import choose_device

DESCRIPTION = """\
Time the gated delta rule forward, and forward + backward, against the chunked PyTorch function of transformers
(qwen3_next), at short lengths against the plain recurrence and, on a GPU in bf16, against flash-linear-attention's
kernels. Before that, outputs and gradients of all must agree."""

OURS, THEIRS, RECURRENT, FLA = "layerroute", "transformers", "recurrent", "flash-linear-attention"
_COMPARED_TOKENS = 256  # gradients of the recurrence are compared over this many: it keeps a state a token
_RECURRENT_TOKENS = 4096  # outputs of the recurrence are compared over this many: it takes a call a token


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    add_sizes(parser, "4x256x4x64 4x256x12x64 4x1024x8x64 1x4096x8x64 4x4096x12x64", heads=True)
    add_passes(parser)
    what = "time the plain recurrence too, up to this length"
    add_number(parser, "--recurrent-up-to", 256, what, least=0, metavar="T")
    add_machine(parser, "the random inputs")


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and pass."""
    device = choose_device(arguments.device)
    return [
        Comparison(
            title=f"{'x'.join(map(str, size))} {name}",
            labels={
                **dict(zip(("batch", "time", "heads", "head_dim"), size, strict=True)),
                "pass": name,
                "dtype": arguments.dtype,
            },
            baseline=THEIRS,
            tokens=size[0] * size[1],
            device=device,
            prepare=partial(_prepare, arguments, size, name, device),
        )
        for size in arguments.sizes
        for name in arguments.passes
    ]


CASES = {"gated-delta": Case(description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons)}


def _prepare(
    arguments: argparse.Namespace, size: tuple[int, int, int, int], which: str, device: torch.device
) -> Prepared:
    batch, time, heads, width = size
    inputs, upstream = _inputs(size, arguments.seed, DTYPES[arguments.dtype], device)
    rules: dict[str, Operator] = {OURS: partial(_ours, backend="chunked"), THEIRS: _theirs}
    if obstacle(inputs["query"], inputs["value"]) is None:
        rules[FLA] = partial(_ours, backend="fla")
    compared = dict(rules)
    if time <= arguments.recurrent_up_to:
        rules[RECURRENT] = partial(_ours, backend="reference")
    backward = None if which == "forward" else upstream
    needed = batch * gated_delta_flops(time, heads=heads, key_dim=width, value_dim=width)
    return Prepared(
        gate=partial(_gate, compared, inputs, upstream, TOLERANCE[arguments.dtype]),
        arms={name: partial(results, rule, inputs, backward) for name, rule in rules.items()},
        # A product has two more in its backward pass.
        needed=dict.fromkeys(compared, needed * (1 if backward is None else 3)),
        dtype=DTYPES[arguments.dtype],
    )


def _ours(*tensors: Tensor, backend: Any) -> Tensor:
    return gated_delta_rule(*tensors, normalize_qk=True, backend=backend)[0]


def _theirs(*tensors: Tensor) -> Tensor:
    with _quiet_transformers():
        return torch_chunk_gated_delta_rule(*tensors, use_qk_l2norm_in_kernel=True)[0]


def _inputs(
    size: tuple[int, int, int, int], seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of a fresh Gated DeltaNet's magnitude, and a gradient of the output."""
    batch, time, heads, width = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    query, key, value, upstream = (normal(batch, time, heads, width) for _ in range(4))
    made = {"query": query, "key": key, "value": value}
    made = {name: tensor.to(dtype) for name, tensor in made.items()}
    made["log_decay"] = -0.1 * F.softplus(normal(batch, time, heads))
    made["beta"] = torch.sigmoid(normal(batch, time, heads))
    return {name: x.to(device).requires_grad_() for name, x in made.items()}, upstream.to(device, dtype)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep back the advice to install a faster kernel: its PyTorch form is what is measured."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _gate(
    compared: dict[str, Operator], inputs: dict[str, Tensor], upstream: Tensor, tolerance: float
) -> Iterator[Check]:
    plain = partial(_ours, backend="reference")
    witness = results(compared[THEIRS], inputs, upstream)
    leaves = {name: one[:, :_COMPARED_TOKENS].detach().requires_grad_() for name, one in inputs.items()}
    start = upstream[:, :_COMPARED_TOKENS]
    recurrent = results(plain, leaves, start)
    some = {name: one[:, :_RECURRENT_TOKENS] for name, one in inputs.items()}
    long = outputs(plain, some)
    for name in (OURS, FLA):
        if name not in compared:
            continue
        rule = compared[name]
        yield from agree(f"{{}} of {name} and {THEIRS}", results(rule, inputs, upstream), witness, tolerance)
        yield from agree(
            f"{{}} of {name} and {RECURRENT}", results(rule, leaves, start), recurrent, tolerance
        )
        yield Check.compare(
            f"outputs of {name} and {RECURRENT} at length", outputs(rule, some), long, tolerance
        )
