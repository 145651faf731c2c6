"""Functions compiled for decoding, and which of them a layer's call takes.

What ``torch.compile`` checks before each call costs more than what fusion saves, for one token on a CPU. So a layer's
checks are made in its first call with a cache, and after that where the kind of call changes. Where PEFT may switch
adapters at any time, or torch cannot compile ahead of time, each call is checked.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from functools import cache as memoize
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.skipping.tuners import is_tuner

_logger = logging.getLogger(__name__)

Function = Callable[..., Any]

_ahead: dict[Hashable, list[Any]] = {}
"""Compiled ahead of time, by what torch's checks of these do not see: functions, and classes of modules."""
_refused: set[Hashable] = set()
"""What torch does not compile ahead of time."""
_compiling = threading.Lock()


class Graphs:
    """Finds the compiled function of a layer's call.

    Args:
        backend: of ``torch.compile``.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._cache: Callable[[], Any] = lambda: None
        self._found: dict[Hashable, Function] = {}

    def begin(self, cache: Any = None) -> None:
        """Say which cache the coming calls have; with another one than before, or none, layers are checked anew."""
        if cache is None or self._cache() is not cache:
            self._cache, self._found = (lambda: None) if cache is None else weakref.ref(cache), {}

    def __call__(
        self,
        function: Function,
        family: Any,
        layer: nn.Module,
        held: Any,
        *args: Any,
        varying: bool = False,
    ) -> Any:
        """``function(family, layer, *args)``, compiled.

        Args:
            held: the layer's part of the cache.
            varying: with sizes that are not built into the graph.
        """
        # A sliding window counts its tokens in a plain number, which no graph may hold.
        varying = varying or held.is_sliding
        given = (family, layer, *args)
        tensors = [one for one in args if isinstance(one, Tensor)]
        device = tensors[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        modes = (torch.is_inference_mode_enabled(), autocast)
        call = (
            function,
            id(layer),
            varying,
            modes,
            *((one.shape, one.stride(), one.dtype) for one in tensors),
        )
        found = self._found.get(call)
        if found is None:
            if not held.is_sliding:
                found = self._compiled_ahead(function, given, type(held), varying, modes)
            found = self._found[call] = found or _checked(function, self.backend, varying)
        return found(*given)

    def _compiled_ahead(
        self, function: Function, given: tuple[Any, ...], held: type, varying: bool, modes: Hashable
    ) -> Function | None:
        """A function whose checks these arguments pass, and which makes none itself; None if there can be none."""
        modules = [module for one in given if isinstance(one, nn.Module) for module in one.modules()]
        if any(is_tuner(module) for module in modules):
            return None
        kind = (function, self.backend, varying, modes, given[0], held, tuple(map(type, modules)))
        with _compiling:
            made = _ahead.setdefault(kind, [])
            for one in made:
                if one.guard_check(*given):
                    return one.fn
            if kind in _refused:
                return None
            compiled: Any = torch.compile(
                function, fullgraph=True, dynamic=None if varying else False, backend=self.backend
            )
            try:
                made.append(compiled.aot_compile((given, {})))
            except Exception as error:  # of many kinds; what is a fault of ours comes again from `_checked`
                _logger.debug("%s is not compiled ahead of time: %s", function.__name__, error)
                _refused.add(kind)
                return None
        return made[-1].fn


@memoize
def _checked(function: Function, backend: str, varying: bool) -> Function:
    """Compiled, with torch's checks before each call."""
    return torch.compile(function, dynamic=None if varying else False, backend=backend)
