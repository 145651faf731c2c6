"""Where a model's parts are and where they compute, when accelerate keeps weights elsewhere until they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.errors import UserError


def _hooks(module: nn.Module) -> Iterator[Any]:
    hook = vars(module).get("_hf_hook")
    if hook is not None:
        yield from getattr(hook, "hooks", [hook])


def execution_device(layer: nn.Module) -> torch.device:
    """Where a layer computes: what accelerate's hooks say, else where its first weight is."""
    for module in layer.modules():
        for hook in _hooks(module):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(layer.parameters()).device


def value_of(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """A module's own parameter or buffer, fetched where accelerate has offloaded it.

    Raises:
        UserError: if it is nowhere (a model made on the meta device).
    """
    if not value.is_meta:
        return value
    for hook in _hooks(module):
        held: Tensor | None = (getattr(hook, "weights_map", None) or {}).get(name)
        if held is not None:
            return held
    raise UserError(
        f"the weights of {type(module).__name__} ({name}) are not in memory, so the base cannot be told from others"
    )


def _offloading(module: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Parts whose weights are elsewhere until they are called, with the hooks that fetch them."""
    return [
        (part, hook) for part in module.modules() for hook in _hooks(part) if getattr(hook, "offload", False)
    ]


def is_offloaded(module: nn.Module) -> bool:
    """Whether any weights are elsewhere until they are needed (in host memory, or on a disk)."""
    return bool(_offloading(module))


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Weights of a module that are elsewhere, fetched once and kept for the length of the context."""
    fetched: list[tuple[nn.Module, Any]] = []
    try:
        for part, hook in _offloading(module):
            hook.pre_forward(part)
            hook.offload = False  # its module's own calls neither fetch nor drop
            fetched.append((part, hook))
        yield
    finally:
        for part, hook in fetched:
            hook.offload = True
            hook.post_forward(part, None)


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate moves weights or inputs of any part of a module."""
    return any("_hf_hook" in vars(part) for part in module.modules())


def unhook(module: nn.Module) -> None:
    """Take accelerate's hooks off all parts of a module; what they had offloaded comes back."""
    from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

    remove_hook_from_submodules(module)


def memory_free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found.split()[1]) * 1024
