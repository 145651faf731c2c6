"""Shapes and types are checked at run time, by beartype and jaxtyping, once for every kind of call.

A check takes longer than most of what tiny models compute. What it can find depends on types, shapes and dtypes alone,
so that a call like one that has passed is not checked again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch
from beartype import BeartypeConf, beartype

# An int is a fine float (PEP 484's numeric tower), as every static checker has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


@functools.cache
def _group(kind: type) -> type:
    return next((one for one in (torch.Tensor, list, tuple, dict, str) if issubclass(kind, one)), object)


def _kind(value: Any) -> Any:
    """All of a value that an annotation can be about: shape and dtype, the choice of a `Literal`, else its type."""
    kind = type(value)
    group = _group(kind)
    if group is object:
        return kind
    if group is str:
        return value
    if group is torch.Tensor:
        return kind, value.shape, value.dtype
    if group is dict:
        return kind, *((_kind(key), _kind(one)) for key, one in value.items())
    return kind, *map(_kind, value)


_passed: dict[CodeType, dict[Any, set[Any]]] = {}
"""By code, so that a function within a function is not another one each time: kinds of arguments, and of results."""


def checked_once(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `jaxtyping.jaxtyped`, which the import hook puts on every function and class."""
    whole = _jaxtyped(typechecker=typechecker)

    def decorate(target: Any) -> Any:
        return _once(target, whole) if inspect.isfunction(target) else whole(target)

    return decorate


def _once(function: Callable[..., Any], whole: Callable[[Any], Any]) -> Callable[..., Any]:
    passed = _passed.setdefault(function.__code__, {})
    output: list[Any] = []

    @functools.lru_cache
    def checked() -> Callable[..., Any]:
        return whole(function)

    @functools.lru_cache
    def output_checked() -> Callable[..., Any]:
        """As `checked`, of what the function has given already."""

        def give(*arguments: Any, **named: Any) -> Any:
            return output.pop()

        given = FunctionType(give.__code__, function.__globals__, closure=give.__closure__)
        return whole(functools.update_wrapper(given, function))

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*arguments, **named)
        kind = _kind(arguments), _kind(named)
        if kind not in passed:
            result = checked()(*arguments, **named)
            passed.setdefault(kind, set()).add(_kind(result))
            return result
        result = function(*arguments, **named)
        if (found := _kind(result)) not in passed[kind]:
            output.append(result)
            output_checked()(*arguments, **named)
            passed[kind].add(found)
        return result

    return wrapped
