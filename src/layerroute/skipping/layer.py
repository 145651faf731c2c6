"""Hooks that tell a model's layers of the decisions, and the layers that carry them out.

The module tree is left as it is: a routed layer keeps its parameters, names and hooks, and its class becomes a
subclass of its own that knows a second forward (as torch's `parametrize` and FSDP2 do). So adapters attach and save
under the base's names, quantised projections are called as modules, and whatever looks for a decoder layer finds one.

Routers run in forward pre-hooks, *outside* of gradient checkpointing: a decision is made once, and recomputation in
backward finds it in the layer's arguments.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache

from layerroute.errors import UserError
from layerroute.skipping.cache_layers import count, counted, held_count
from layerroute.skipping.context import CallContext
from layerroute.skipping.devices import is_hooked
from layerroute.skipping.execution import LayerCall
from layerroute.skipping.families import Family
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.routes import DENSE


@dataclass(frozen=True)
class Frame:
    """A call in flight of one decoder stack; ``context`` is None where its tokens are of no interest."""

    stack: nn.Module
    router: LayerRouter
    family: Family | None
    context: CallContext | None
    outer: "Frame | None"
    routed: bool = True


CURRENT: ContextVar[Frame | None] = ContextVar("layerroute_call", default=None)
"""The innermost call in flight in this thread."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def begin_call(
    router: LayerRouter,
    family: Family | None,
    layers: nn.ModuleList,
    stack: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Forward pre-hook of the decoder stack."""
    if is_hooked(router):  # accelerate came after the router
        router.place(layers)
    context = None
    inputs = {**dict(zip(_parameters(type(stack)), args, strict=False)), **kwargs}
    # Also while disabled, if it can be: what the cache has to know of these tokens when routing goes on.
    with nullcontext() if router.enabled else suppress(Exception):
        context = CallContext.of(inputs)
        if context.paged and router.enabled and router.paged_obstacle is not None:
            raise UserError(router.paged_obstacle)
        if (
            router.enabled
            and router.steps is not None
            and not stack.training
            and router.steps.applies(context)
        ):
            context.steps = router.steps
    CURRENT.set(Frame(stack, router, family, context, CURRENT.get(), router.enabled))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def end_call(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ARG001
    """Forward hook of the decoder stack; also called, without output, when its forward raised."""
    frame = CURRENT.get()
    if frame is None or frame.stack is not stack:
        return
    CURRENT.set(frame.outer)
    if frame.context is not None and output is not None:
        if frame.routed:
            frame.router.finish(frame.context)
        _count(frame.context, output)


def _count(context: CallContext, output: Any) -> None:
    """Count the tokens of a call where its cache does not."""
    cache = context.cache
    if cache is None:
        values = (
            output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        )
        cache = next((value for value in values if isinstance(value, Cache)), None)
    if cache is None or isinstance(cache, EncoderDecoderCache):
        return
    # Asked once: a cache that counted its first tokens counts all.
    now = counted(cache)  # on the device: by a static cache, which counts for itself
    if held_count(cache) or (isinstance(now, int) and now == context.past == 0):
        count(cache, context.valid)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def enter_layer(
    index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of a decoder layer: decide where a router reads here, and hand the layer its route."""
    frame = CURRENT.get()
    if frame is None or frame.context is None:
        return None
    context, router = frame.context, frame.router
    names = _parameters(type(layer))
    if len(args) > 1 or names[0] in kwargs:  # transformers passes the state first and all else by name
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        args = (kwargs.pop(names[0]),)
    if index in router.deciders:
        decide = router.decide if frame.routed else router.watch
        decide(index, args[0], context, kwargs.get("past_key_values"))
    routes = context.routes.get(index, {})
    if context.steps is None and all(route.mode == DENSE for route in routes.values()):
        return None
    call = LayerCall(
        family=frame.family,
        evict=router.config.kv == "evict",
        routes=routes,
        skip_path=partial(router.skip_path, index),
        context=context,
    )
    # The state stays positional: gradient checkpointing differentiates positional arguments.
    return args, {**kwargs, "route": call}


class RoutedLayer:
    """Mixin of a decoder layer that carries out a route."""

    def forward(self, hidden_states: Any, *args: Any, route: LayerCall | None = None, **kwargs: Any) -> Any:
        """The base layer's forward, or the route's execution of it."""
        plain = super().forward  # type: ignore[misc]
        if route is None:
            return plain(hidden_states, *args, **kwargs)
        return route(self, plain, hidden_states, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and pickles: its class is made here, and cannot be found under its name."""
        state = self.__getstate__()
        return _new_layer, (plain_class(type(self)),), state


def _new_layer(cls: type[Any]) -> Any:
    made: Any = routed_class(cls)
    return made.__new__(made)


_ROUTED: dict[type[Any], type[Any]] = {}


def routed_class(cls: type[Any]) -> type[Any]:
    """The subclass of a decoder layer's class that can be routed; it keeps the name that others look for."""
    if cls not in _ROUTED:
        _ROUTED[cls] = type(
            cls.__name__, (RoutedLayer, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__}
        )
    return _ROUTED[cls]


def plain_class(cls: type[Any]) -> type[Any]:
    """The inverse of ``routed_class``."""
    return cls.__mro__[cls.__mro__.index(RoutedLayer) + 1] if issubclass(cls, RoutedLayer) else cls


_PARAMETERS: dict[type[Any], tuple[str, ...]] = {}


def _parameters(cls: type[Any]) -> tuple[str, ...]:
    if cls not in _PARAMETERS:
        _PARAMETERS[cls] = tuple(inspect.signature(plain_class(cls).forward).parameters)[1:]
    return _PARAMETERS[cls]
