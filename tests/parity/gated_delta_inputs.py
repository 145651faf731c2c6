"""Random inputs of the gated delta rule, and runs that return everything a backend can get wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NAMES = ("output", "final_state", "query", "key", "value", "log_decay", "beta", "initial_state")


@dataclass(kw_only=True)
class Inputs:
    """What a call takes. ``state`` is None where the call starts from nothing."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor
    state: Tensor | None = None
    documents: Tensor | None = None

    def sliced(self, tokens: slice, state: Tensor | None) -> "Inputs":
        """Some of the tokens, continuing ``state``."""
        return Inputs(
            query=self.query[:, tokens],
            key=self.key[:, tokens],
            value=self.value[:, tokens],
            log_decay=self.log_decay[:, tokens],
            beta=self.beta[:, tokens],
            state=state,
            documents=None if self.documents is None else self.documents[:, tokens],
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value, self.log_decay, self.beta


def make(
    time: int,
    *,
    batch: int = 2,
    heads: int = 2,
    key_dim: int = 8,
    value_dim: int = 5,
    state: bool = True,
    documents: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Inputs like a model's: unit keys, decays between 0.6 and 1, beta in (0, 1), documents of a few tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    ids = torch.rand(batch, time, generator=generator).lt(0.15).cumsum(1) if documents else None
    return Inputs(
        query=normal(batch, time, heads, key_dim),
        key=F.normalize(normal(batch, time, heads, key_dim), dim=-1),
        value=normal(batch, time, heads, value_dim),
        log_decay=-0.5 * torch.rand(batch, time, heads, dtype=dtype, generator=generator),
        beta=torch.rand(batch, time, heads, dtype=dtype, generator=generator),
        state=normal(batch, heads, key_dim, value_dim) if state else None,
        documents=ids,
    )


def run(
    rule: Callable[..., tuple[Tensor, Tensor | None]], inputs: Inputs, **options: object
) -> tuple[Tensor, Tensor]:
    """Output and final state."""
    output, state = rule(
        *inputs.tensors(),
        initial_state=inputs.state,
        document_ids=inputs.documents,
        output_final_state=True,
        **options,
    )
    assert state is not None
    return output, state


def run_with_gradients(
    rule: Callable[..., tuple[Tensor, Tensor | None]],
    inputs: Inputs,
    *,
    through: tuple[str, ...] = ("output", "state"),
    **options: object,
) -> dict[str, Tensor]:
    """Output, final state, and the gradient of every input under random upstream gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs.tensors()]
    state = None if inputs.state is None else inputs.state.detach().clone().requires_grad_()
    query, key, value, log_decay, beta = leaves
    copy = Inputs(
        query=query,
        key=key,
        value=value,
        log_decay=log_decay,
        beta=beta,
        state=state,
        documents=inputs.documents,
    )
    output, final = run(rule, copy, **options)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros(
        (), dtype=torch.float64, device=inputs.query.device, requires_grad=True
    )  # a graph without a token, too
    for name, tensor in (("output", output), ("state", final)):
        weights = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
        if name in through:
            loss = loss + (tensor.double() * weights.to(tensor.device)).sum()
    wanted = leaves if state is None else [*leaves, state]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return dict(zip(NAMES, (output.detach(), final.detach(), *gradients), strict=False))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every entry agrees, relative to the largest element expected; the message names the one that does not."""
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        assert actual[name].shape == reference.shape, name
        assert actual[name].isfinite().all(), f"{name} is not finite"
        if reference.numel():
            difference = (actual[name].double() - reference.double()).abs().max().item()
            bound = tolerance * max(reference.abs().max().item(), 0.1)
            assert difference <= bound, f"{name} differs by {difference:.3g}, allowed {bound:.3g}"
