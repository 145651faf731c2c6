"""Which precision and which device a run uses, and why. torch is imported when first needed."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from layerroute.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]


class ChosenPrecision(NamedTuple):
    """``name`` of the precision that a run computes in, and the ``reason``, to be shown to the user."""

    name: Literal["bf16", "fp32"]
    reason: str


def choose_device(requested: Device) -> torch.device:
    """The device asked for; ``auto`` is the GPU if there is one.

    Raises:
        UserError: if CUDA is asked for and not there, or another word is.
    """
    import torch

    _check("device", requested, Device)
    available = torch.cuda.is_available()
    if requested == "cuda" and not available:
        raise UserError("the device asked for is 'cuda', but torch finds no GPU; ask for auto or cpu")
    return torch.device("cuda" if available and requested != "cpu" else "cpu")


@cache
def cpu_flags(path: str = "/proc/cpuinfo") -> frozenset[str]:
    """Instruction-set flags of the first CPU, empty where the system does not tell (only Linux does)."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def choose_precision(requested: Precision, device: torch.device) -> ChosenPrecision:
    """bfloat16 where the machine multiplies it fast, float32 elsewhere, or what was asked for.

    On a GPU that is one with native bfloat16; on a CPU one with AMX or AVX-512 BF16 (x86) or BF16 (Arm)
    instructions, without which bfloat16 is emulated, slower than float32.

    Raises:
        UserError: if bfloat16 is asked for on a GPU that does not have it, or another word is asked for.
    """
    _check("precision", requested, Precision)
    if requested == "fp32":
        return ChosenPrecision("fp32", "as asked")
    if device.type == "cuda":
        import torch

        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if requested == "bf16" and not native:
            raise UserError("train.precision is 'bf16', but this GPU has no bfloat16; use fp32 or auto")
        return (
            ChosenPrecision("bf16", "native on this GPU")
            if native
            else ChosenPrecision("fp32", "no bfloat16")
        )
    if requested == "bf16":
        return ChosenPrecision("bf16", "as asked")
    found = sorted(cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"})
    if found:
        return ChosenPrecision("bf16", f"this CPU has {', '.join(found)}")
    return ChosenPrecision("fp32", f"no bfloat16 instructions on this {platform.machine()} CPU")


def _check(what: str, requested: str, known: object) -> None:
    if requested not in get_args(known):
        raise UserError(f"unknown {what} {requested!r}.{nearest(str(requested), get_args(known))}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a model computes at ``precision``, in training as in evaluation."""
    if precision == "bf16":
        import torch

        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
