"""What AdamW decays, and how its learning rate moves."""

import math
from dataclasses import dataclass

from torch import nn

_UNDECAYED = ("bias", "A_log", "dt_bias")


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that weight decay applies to: matrices, but no norm, bias or decay.

    A parameter is left alone if it has fewer than 2 dimensions (biases, norms, per-head decays), if its own name is
    ``bias``, ``A_log`` or ``dt_bias``, if it belongs to a module whose class or name says norm, or if it is marked
    ``_no_weight_decay`` (as flash-linear-attention marks the decays of its layers).
    """
    names = []
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() or "norm" in path.rpartition(".")[2].lower()
        for name, parameter in module.named_parameters(recurse=False):
            decays = (
                parameter.requires_grad
                and parameter.ndim >= 2
                and not is_norm
                and name not in _UNDECAYED
                and not getattr(parameter, "_no_weight_decay", False)
            )
            if decays:
                names.append(f"{path}.{name}" if path else name)
    # Tied weights appear under each of their names; the optimizer must meet them once.
    unique = {name for name, _ in model.named_parameters()}
    return [name for name in names if name in unique]


def learning_rate_factor(
    step: int, *, warmup_steps: int, total_steps: int, first_step: int = 0, shape: str = "linear"
) -> float:
    """Share of the peak learning rate at ``step`` (0 is the first): linear rise, then fall to 0.

    The first step already has 1/warmup_steps of the peak (a step at rate 0 would be a wasted batch); 0 would be
    reached at step ``total_steps``, one after the last.

    Args:
        first_step: the rate is 0 before it; rise and fall then share the steps that are left.
        shape: of the fall, ``linear`` or ``cosine``.
    """
    step, total_steps = step - first_step, total_steps - first_step
    if step < 0:
        return 0.0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    return left if shape == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that are trained at a rate of their own.

    Attributes:
        factor: of the run's learning rate.
        begin: share of the run before which they stand still.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    factor: float = 1.0
    begin: float = 0.0


def optimizer_groups(
    groups: list[ParameterGroup], decayed: list[str], *, learning_rate: float, weight_decay: float
) -> tuple[list[dict[str, object]], list[float]]:
    """Groups as torch's optimizers take them, each split into decayed and undecayed, and where each begins.

    Groups without parameters or with a factor of 0 are left out.
    """
    made: list[dict[str, object]] = []
    begins: list[float] = []
    for group in groups:
        for decay in (True, False):
            chosen = [value for name, value in group.parameters.items() if (name in decayed) == decay]
            if not chosen or group.factor == 0.0:
                continue
            made.append(
                {
                    "params": chosen,
                    "lr": learning_rate * group.factor,
                    "weight_decay": weight_decay if decay else 0.0,
                }
            )
            begins.append(group.begin)
    return made, begins
