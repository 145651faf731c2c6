"""Cases ``attention`` and ``peers``: routed attention against full causal attention, and done by other means."""

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from layerroute.argument_types import add_number, rate
from layerroute.benchmark.case import Case, Check, Comparison, Prepared, agree
from layerroute.benchmark.operators import results
from layerroute.benchmark.options import (
    DTYPES,
    TOLERANCE,
    add_machine,
    add_passes,
    add_shares,
    add_sizes,
    percent,
)
from layerroute.errors import UserError
from layerroute.ops.routed_attention import intervals, routed_attention
from layerroute.precision import choose_device

FULL, ROUTED = "full causal", "routed"
EAGER, MASK, FLEX = "eager, dense mask", "fused, dense mask", "FlexAttention"

# From query, key and value (B, H, T, D) to the outputs of the chosen queries, (N, H, D)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Problem:
    """Random tensors, and the tokens whose queries are asked.

    Args:
        size: rows, tokens, heads, width.
        rate: share of the queries that are asked, at least one a row.

    Attributes:
        inputs: query, key and value (B, H, T, D), with gradients.
        row, position: of the chosen queries.
        upstream: (N, H, D) gradient of their outputs.
    """

    def __init__(
        self, size: tuple[int, ...], rate: float, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        batch, time, heads, width = size
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)

        names = ("query", "key", "value")
        self.inputs = {name: normal(batch, heads, time, width).requires_grad_() for name in names}
        count = max(1, round(rate * time))
        order = torch.rand(batch, time, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
        self.position = order.flatten().to(device)
        self.row = torch.arange(batch, device=device).repeat_interleave(count)
        self.upstream = normal(batch * count, heads, width)

    def chosen(self, tensor: Tensor) -> Tensor:
        """(N, H, D) of (B, H, T, D)."""
        return tensor.transpose(1, 2)[self.row, self.position]

    def full_chosen(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of all queries, of which only the chosen ones are used."""
        return self.chosen(_full(query, key, value))

    def routed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of the chosen queries alone."""
        gathered = self.chosen(query)
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        return routed_attention(gathered, keys, values, row=self.row, position=self.position)

    def masked(self, query: Tensor, key: Tensor, value: Tensor, *, eager: bool) -> Tensor:
        """The same with a dense mask: torch's fused attention, or written out as transformers' eager one."""
        batch, _, time, width = query.shape
        gathered = self.by_row(query)
        mask = intervals(self.row, self.position).visible(time).view(batch, 1, -1, time)
        if eager:
            scores = gathered @ key.transpose(-1, -2) * width**-0.5
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            out = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
        else:
            out = F.scaled_dot_product_attention(gathered, key, value, attn_mask=mask)
        return out.transpose(1, 2).flatten(0, 1)

    def by_row(self, query: Tensor) -> Tensor:
        """Chosen queries as (B, H, M, D), since every row has as many."""
        batch, heads, _, width = query.shape
        return self.chosen(query).view(batch, -1, heads, width).transpose(1, 2)

    def flex(self) -> Attention:
        """FlexAttention with a block mask of the gathered positions, both made before the timing."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        batch, _, time, _ = self.inputs["query"].shape
        positions = self.position.view(batch, -1)

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
            return k <= positions[b, q]

        device = str(positions.device)
        block_mask = create_block_mask(sees, batch, None, positions.shape[1], time, device=device)
        compiled = torch.compile(flex_attention)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # On a CPU it refuses tensors that require gradients, whether one is wanted or not.
            gathered = self.by_row(query.detach()).contiguous()
            out = compiled(gathered, key.detach(), value.detach(), block_mask=block_mask)
            assert isinstance(out, Tensor)
            return out.transpose(1, 2).flatten(0, 1)

        return attend


def _full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _add_arguments(rates: Sequence[float], parser: argparse.ArgumentParser) -> None:
    add_sizes(parser, "1x4096x8x64", heads=True)
    add_shares(parser, "--rates", rates, rate, "of the queries that are asked")
    add_machine(parser, "the random inputs")


def _rows(
    arguments: argparse.Namespace,
    passes: Sequence[str],
    ways: Callable[[Problem], dict[str, Attention]],
    **labels: str,
) -> list[Comparison]:
    """One row for each size, share and pass; the pass is named where there are no other labels."""
    device = choose_device(arguments.device)
    if 0.0 in arguments.rates:
        raise UserError("--rates: 0 asks for no query; give a share above 0.")
    return [
        Comparison(
            title=f"{'x'.join(map(str, size))}, {percent(share)} asked{'' if labels else f', {name}'}",
            labels={
                **dict(zip(("batch", "time", "heads", "head_dim"), size, strict=True)),
                "rate": share,
                "dtype": arguments.dtype,
                **(labels or {"pass": name}),
            },
            baseline=FULL,
            tokens=size[0] * size[1],
            device=device,
            prepare=partial(_prepare, arguments, size, share, device, ways, name != "forward"),
        )
        for size, share, name in product(arguments.sizes, arguments.rates, passes)
    ]


def _prepare(
    arguments: argparse.Namespace,
    size: tuple[int, ...],
    rate: float,
    device: torch.device,
    ways: Callable[[Problem], dict[str, Attention]],
    backward: bool,
) -> Prepared:
    """``ways`` other than full attention, which must have its outputs and, if asked for, gradients."""
    problem = Problem(size, rate, DTYPES[arguments.dtype], device, arguments.seed)
    compared = ways(problem)
    whole = torch.ones_like(problem.inputs["query"]) if backward else None
    upstream = problem.upstream if backward else None

    def gate() -> Iterator[Check]:
        expected = results(problem.full_chosen, problem.inputs, upstream)
        for name, way in compared.items():
            found = results(way, problem.inputs, upstream)
            yield from agree(f"{{}} of {name} and {FULL}", found, expected, TOLERANCE[arguments.dtype])

    arms = {name: partial(results, way, problem.inputs, upstream) for name, way in compared.items()}
    batch, time, heads, width = size
    # Two products a query and key in the forward pass, five in the backward pass.
    each = 4.0 * heads * width * (3.5 if backward else 1.0)
    needed = each * float((problem.position + 1).sum())
    return Prepared(
        gate=gate,
        arms={FULL: partial(results, _full, problem.inputs, whole), **arms},
        needed={FULL: each * batch * time * (time + 1) / 2, **dict.fromkeys(arms, needed)},
        dtype=DTYPES[arguments.dtype],
    )


def _attention_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments([0.5, 0.25, 0.125], parser)
    add_passes(parser)


def _attention(arguments: argparse.Namespace) -> list[Comparison]:
    return _rows(arguments, arguments.passes, lambda problem: {ROUTED: problem.routed})


def _peers_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments([0.25], parser)
    parser.add_argument(
        "--flex", action="store_true", help="also time FlexAttention, which torch.compile builds first"
    )
    what = "leave out the eager one, which holds all scores, above this length (default: never)"
    add_number(parser, "--eager-up-to", None, what, least=0, metavar="T")


def _peers(arguments: argparse.Namespace) -> list[Comparison]:
    missing = [] if importlib.util.find_spec("fla") else ["flash-linear-attention is not installed"]
    if not arguments.flex:
        missing.append("FlexAttention was not asked for")

    def ways(problem: Problem) -> dict[str, Attention]:
        found: dict[str, Attention] = {
            ROUTED: problem.routed,
            MASK: partial(problem.masked, eager=False),
        }
        if arguments.eager_up_to is None or problem.inputs["query"].shape[2] <= arguments.eager_up_to:
            found[EAGER] = partial(problem.masked, eager=True)
        return {**found, FLEX: problem.flex()} if arguments.flex else found

    return _rows(arguments, ["forward"], ways, missing="; ".join(missing))


CASES = {
    "attention": Case(
        description="""\
Time attention of a share of the queries against all keys (key prefixes in PyTorch on a CPU, Triton's kernel on a GPU)
against full causal attention of all queries (torch's fused one). Before that, outputs and gradients must be those of
full attention at these queries.""",
        add_arguments=_attention_arguments,
        comparisons=_attention,
    ),
    "peers": Case(
        description="""\
Time the forward pass of routed attention against other ways to get the same outputs: full causal attention of all
queries, torch's fused attention with a dense mask over the chosen ones, attention written out as transformers' eager
one, and FlexAttention (compiled; --flex). Before that, the outputs of all must agree. What is not installed is named in
the record.""",
        add_arguments=_peers_arguments,
        comparisons=_peers,
    ),
}
