"""How the cases of single operators run and compare them: outputs, and gradients of all inputs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Operator = Callable[..., Tensor]
"""From the inputs, by position, to the outputs."""


def outputs(operator: Operator, inputs: Mapping[str, Tensor]) -> Tensor:
    """A forward pass without a graph."""
    with torch.no_grad():
        return operator(*inputs.values())


def results(operator: Operator, inputs: Mapping[str, Tensor], upstream: Tensor | None) -> dict[str, Tensor]:
    """A forward pass and, with the gradient of the outputs, a backward one."""
    if upstream is None:
        return {"outputs": outputs(operator, inputs)}
    out = operator(*inputs.values())
    gradients = torch.autograd.grad(out, list(inputs.values()), upstream)
    named = {f"gradients of {name}": one for name, one in zip(inputs, gradients, strict=True)}
    return {"outputs": out.detach(), **named}
