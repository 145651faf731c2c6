"""A device that is not there: tensors that count how often the CPU would have to wait for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from layerroute.ops.tokens import TokenIndex

_WAITING = {"cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"}


class Far(torch.Tensor):
    """A tensor whose results are far too, and whose values cost a wait. ``cpu()`` brings it home."""

    waits: list[str] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _WAITING and args and isinstance(args[0], Far):
            cls.waits.append(name)
            if name == "cpu":
                return args[0].as_subclass(torch.Tensor).clone()  # type: ignore[attr-defined]
        return super().__torch_function__(func, types, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Tensors made on a named device are far: the package names one exactly where it means the model's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = (kwargs or {}).get("device") is not None and type(out) is torch.Tensor
        return out.as_subclass(Far) if made else out


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Within the context, the waits of calls with ``Far`` inputs; indices have a copy at home, as with a GPU."""
    original = TokenIndex.of
    TokenIndex.of = lambda flat, on_host, time: original(flat, on_host.clone(), time)  # type: ignore[method-assign]
    Far.waits = []
    try:
        with _Factories():
            yield Far.waits
    finally:
        TokenIndex.of = original  # type: ignore[method-assign]
