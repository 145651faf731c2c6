"""Cases ``attention`` and ``peers``: routed attention against full causal attention, and done by other means."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from layerroute.benchmark.case import Check, Comparison, Prepared, each_pair
from layerroute.errors import UserError, nearest
from layerroute.ops.routed_attention import intervals, routed_attention
from layerroute.precision import choose_device

DESCRIPTION = """\
Time attention of a share of the queries against all keys (key prefixes in PyTorch on a CPU, Triton's kernel on a GPU)
against full causal attention of all queries (torch's fused one). Before that, outputs and gradients must be those of
full attention at these queries."""

FULL, ROUTED = "full causal", "routed"
PASSES = ("forward", "forward+backward")
TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Inputs = tuple[Tensor, Tensor, Tensor]
# From query, key and value (B, H, T, D) to the outputs of the chosen queries, (N, H, D)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Problem:
    """Random tensors, and the tokens whose queries are asked.

    Attributes:
        inputs: query, key and value (B, H, T, D), with gradients.
        row, position: of the chosen queries.
        upstream: (N, H, D) gradient of their outputs.
    """

    def __init__(
        self,
        size: tuple[int, int, int, int],
        rate: float,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        batch, time, heads, width = size
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)

        made = [normal(batch, heads, time, width).requires_grad_() for _ in range(3)]
        self.inputs: Inputs = (made[0], made[1], made[2])
        count = max(1, round(rate * time))
        order = torch.rand(batch, time, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
        self.position = order.flatten().to(device)
        self.row = torch.arange(batch, device=device).repeat_interleave(count)
        self.upstream = normal(batch * count, heads, width)

    def chosen(self, tensor: Tensor) -> Tensor:
        """(N, H, D) of (B, H, T, D)."""
        return tensor.transpose(1, 2)[self.row, self.position]

    def full(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of all queries."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def full_chosen(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same, of which only the chosen queries are used."""
        return self.chosen(self.full(query, key, value))

    def routed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of the chosen queries alone."""
        gathered = self.chosen(query)
        keys, values = key.transpose(1, 2), value.transpose(1, 2)
        return routed_attention(gathered, keys, values, row=self.row, position=self.position)

    def visible(self, keys: int) -> Tensor:
        """(N, S) which keys the chosen queries see."""
        return intervals(self.row, self.position).visible(keys)

    def arm(self, attention: Attention, *, backward: bool) -> Callable[[], object]:
        """One call to be timed."""

        def call() -> object:
            if not backward:
                with torch.no_grad():
                    return attention(*self.inputs)
            out = attention(*self.inputs)
            upstream = self.upstream if out.shape == self.upstream.shape else self._whole()
            return out, *torch.autograd.grad(out, self.inputs, upstream)

        return call

    def _whole(self) -> Tensor:
        """A gradient for all queries, made once."""
        if not hasattr(self, "_upstream"):
            self._upstream = torch.ones_like(self.inputs[0])
        return self._upstream

    def checks(self, attention: Attention, who: str, tolerance: float, *, backward: bool) -> Iterator[Check]:
        """Outputs, and gradients, against full attention at the chosen queries."""

        def results(one: Attention) -> Mapping[str, Tensor]:
            out = one(*self.inputs)
            found = {f"outputs of {who} and {FULL}": out.detach()}
            if backward:
                gradients = torch.autograd.grad(out, self.inputs, self.upstream)
                names = ("query", "key", "value")
                found |= {
                    f"gradients of {name} of {who} and {FULL}": grad
                    for name, grad in zip(names, gradients, strict=True)
                }
            return found

        yield from each_pair(results(attention), results(self.full_chosen), tolerance)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    add_size_arguments(parser, "1x4096x8x64", [0.5, 0.25, 0.125])
    parser.add_argument(
        "--passes",
        nargs="+",
        default=list(PASSES),
        metavar="PASS",
        help=f"{' or '.join(PASSES)} (default: both)",
    )


def add_size_arguments(parser: argparse.ArgumentParser, sizes: str, rates: Sequence[float]) -> None:
    """Options that both cases have."""
    parser.add_argument(
        "--sizes", nargs="+", default=sizes.split(), metavar="BxTxHxK", help="rows x tokens x heads x width"
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=list(rates),
        metavar="SHARE",
        help="of the queries that are asked",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="default: fp32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs (default: 0)")


def sizes_of(arguments: argparse.Namespace) -> list[tuple[int, int, int, int]]:
    """The sizes, and the rates checked."""
    for rate in arguments.rates:
        if not 0.0 < rate <= 1.0:
            raise UserError(f"--rates: {rate} is not a share above 0 and at most 1.")
    found = []
    for text in arguments.sizes:
        words = text.split("x")
        if len(words) != 4 or not all(word.isdigit() and int(word) for word in words):
            raise UserError(f"--sizes: {text!r} is not rows x tokens x heads x width, as 1x4096x8x64.")
        found.append((int(words[0]), int(words[1]), int(words[2]), int(words[3])))
    return found


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each size, share and pass."""
    device = choose_device(arguments.device)
    for name in arguments.passes:
        if name not in PASSES:
            raise UserError(f"--passes: {name!r} is not a pass.{nearest(name, PASSES)}")
    return [
        Comparison(
            title=f"{'x'.join(map(str, size))}, {rate:.1%} asked, {name}",
            labels={
                "batch": size[0],
                "time": size[1],
                "heads": size[2],
                "head_dim": size[3],
                "rate": rate,
                "pass": name,
                "dtype": arguments.dtype,
            },
            baseline=FULL,
            tokens=size[0] * size[1],
            device=device,
            prepare=partial(_prepare, size, rate, name, arguments.dtype, device, arguments.seed),
        )
        for size in sizes_of(arguments)
        for rate in arguments.rates
        for name in arguments.passes
    ]


def _prepare(
    size: tuple[int, int, int, int], rate: float, which: str, dtype: str, device: torch.device, seed: int
) -> Prepared:
    problem = Problem(size, rate, DTYPES[dtype], device, seed)
    backward = which != "forward"
    return Prepared(
        gate=lambda: list(problem.checks(problem.routed, ROUTED, TOLERANCE[dtype], backward=backward)),
        arms={
            FULL: problem.arm(problem.full, backward=backward),
            ROUTED: problem.arm(problem.routed, backward=backward),
        },
    )
