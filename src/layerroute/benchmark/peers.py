"""Case ``peers``: the same routed attention by other means that are installed."""

import argparse
import importlib.util
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from layerroute.benchmark.attention import (
    DTYPES,
    FULL,
    ROUTED,
    TOLERANCE,
    Attention,
    Problem,
    add_size_arguments,
    sizes_of,
)
from layerroute.benchmark.case import Comparison, Prepared
from layerroute.precision import choose_device

DESCRIPTION = """\
Time the forward pass of routed attention against other ways to get the same outputs: full causal attention of all
queries, torch's fused attention with a dense mask over the chosen ones, attention written out as transformers' eager
one, and FlexAttention (compiled; --flex). Before that, the outputs of all must agree. What is not installed is named in
the record."""

EAGER, MASK, FLEX = "eager, dense mask", "fused, dense mask", "FlexAttention"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    add_size_arguments(parser, "1x4096x8x64", [0.25])
    parser.add_argument(
        "--flex",
        action="store_true",
        help="also FlexAttention, which torch.compile builds first",
    )


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size and share."""
    device = choose_device(arguments.device)
    missing = [] if importlib.util.find_spec("fla") else ["flash-linear-attention is not installed"]
    if not arguments.flex:
        missing.append("FlexAttention was not asked for")
    return [
        Comparison(
            title=f"{'x'.join(map(str, size))}, {rate:.1%} asked",
            labels={
                "batch": size[0],
                "time": size[1],
                "heads": size[2],
                "head_dim": size[3],
                "rate": rate,
                "dtype": arguments.dtype,
                "missing": "; ".join(missing),
            },
            baseline=FULL,
            tokens=size[0] * size[1],
            device=device,
            prepare=partial(
                _prepare, size, rate, arguments.dtype, device, arguments.seed, flex=arguments.flex
            ),
        )
        for size in sizes_of(arguments)
        for rate in arguments.rates
    ]


def _prepare(
    size: tuple[int, int, int, int], rate: float, dtype: str, device: torch.device, seed: int, *, flex: bool
) -> Prepared:
    problem = Problem(size, rate, DTYPES[dtype], device, seed)
    ways: dict[str, Attention] = {
        ROUTED: problem.routed,
        MASK: partial(_masked, problem, eager=False),
        EAGER: partial(_masked, problem, eager=True),
    }
    if flex:
        ways[FLEX] = _flex(problem)
    return Prepared(
        gate=lambda: [
            check
            for name, way in ways.items()
            for check in problem.checks(way, name, TOLERANCE[dtype], backward=False)
        ],
        arms={
            FULL: problem.arm(problem.full, backward=False),
            **{name: problem.arm(way, backward=False) for name, way in ways.items()},
        },
    )


def _by_row(problem: Problem, query: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen queries as (B, H, M, D), since every row has as many, and their mask (B, 1, M, S)."""
    batch, heads, time, width = query.shape
    gathered = problem.chosen(query).view(batch, -1, heads, width).transpose(1, 2)
    return gathered, problem.visible(time).view(batch, 1, -1, time)


def _masked(problem: Problem, query: Tensor, key: Tensor, value: Tensor, *, eager: bool) -> Tensor:
    gathered, mask = _by_row(problem, query)
    if eager:
        scores = gathered @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    else:
        out = F.scaled_dot_product_attention(gathered, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(0, 1)


def _flex(problem: Problem) -> Attention:
    """FlexAttention with a block mask of the gathered positions, both made before the timing."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query = problem.inputs[0]
    batch, _, time, _ = query.shape
    positions = problem.position.view(batch, -1)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return k <= positions[b, q]

    block_mask = create_block_mask(sees, batch, None, positions.shape[1], time, device=str(query.device))
    compiled = torch.compile(flex_attention)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # On a CPU it refuses tensors that require gradients, whether one is wanted or not.
        gathered, _ = _by_row(problem, query.detach())
        out = compiled(gathered.contiguous(), key.detach(), value.detach(), block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).flatten(0, 1)

    return attend
