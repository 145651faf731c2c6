"""What AdamW decays, and how its learning rate moves."""

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


def learning_rate_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (0 is the first): linear rise, then linear fall to 0.

    The first step already has 1/warmup_steps of the peak (a step at rate 0 would be a wasted batch); 0 would be
    reached at step ``total_steps``, one after the last.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
