"""Shapes and types are checked at run time, by beartype and jaxtyping, once for every kind of call.

A check takes longer than most of what tiny models compute. What it can find depends on types, dtypes and on which sizes
are alike, so that a call like one that has passed is not checked again: not at each length of a text either.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
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


def _kind(value: Any, sizes: dict[int, int] | None) -> Any:
    """All of a value that an annotation can be about: shape and dtype, the choice of a `Literal`, else its type.

    Sizes above 2 are told by the order in which they came up, kept in ``sizes``: ``B T`` is met by 3 and 4 if it is
    met by 5 and 9. With None they are told as they are.
    """
    kind = type(value)
    group = _group(kind)
    if group is object:
        return kind
    if group is str:
        return value
    if group is torch.Tensor:
        shape = value.shape
        if sizes is not None:
            shape = tuple([size if size < 3 else sizes.setdefault(size, len(sizes) + 3) for size in shape])
        return kind, shape, value.dtype
    if group is dict:
        return kind, *[(_kind(key, sizes), _kind(one, sizes)) for key, one in value.items()]
    return kind, *[_kind(one, sizes) for one in value]


_COMPUTED = re.compile(r"""\w[-+*]\w|[\s"'](?:[3-9]|\d\d+)[\s"']""")
"""Sizes in an annotation that the likeness of sizes does not tell: sums, products, and numbers above 2."""

_passed: dict[CodeType, dict[Any, set[Any]]] = {}
"""By code, so that a function within a function is not another one each time: kinds of arguments, and of results."""


def checked_once(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """In the place of `jaxtyping.jaxtyped`, which the import hook puts on every function and class."""
    whole = _jaxtyped(typechecker=typechecker)

    def decorate(target: Any) -> Any:
        if inspect.isfunction(target):
            return _once(target, whole)
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            # Generated code is equal in classes whose fields have the same names: the kind of `self` tells them apart.
            target.__init__ = _once(target.__init__, whole)
            return target
        return whole(target)

    return decorate


def _once(function: Callable[..., Any], whole: Callable[[Any], Any]) -> Callable[..., Any]:
    passed = _passed.setdefault(function.__code__, {})
    exact = any(_COMPUTED.search(str(annotation)) for annotation in function.__annotations__.values())
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
        sizes: dict[int, int] | None = None if exact else {}
        kind = _kind(arguments, sizes), _kind(named, sizes)
        if kind not in passed:
            result = checked()(*arguments, **named)
            passed.setdefault(kind, set()).add(_kind(result, sizes))
            return result
        result = function(*arguments, **named)
        if (found := _kind(result, sizes)) not in passed[kind]:
            output.append(result)
            output_checked()(*arguments, **named)
            passed[kind].add(found)
        return result

    return wrapped
