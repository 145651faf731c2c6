"""From plain values to typed configuration, and one clear sentence for what does not fit.

Why not jsonargparse's type validation: it parses texts a second time (a quoted ``"null"`` given to ``str | None``
becomes None, ``"5"`` given to ``int | str`` becomes 5) and takes null for any type, so that ``max_steps: null``
passes. What a recipe says has been parsed by YAML already; here it is only held to the types.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from layerroute.errors import UserError, nearest

T = TypeVar("T")

_PLAIN = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "text",
    types.NoneType: "null",
}
_LISTS, _MAPPINGS = (list, tuple, Sequence), (dict, Mapping)


@dataclasses.dataclass(frozen=True)
class FromCommandLine:
    """A scalar given as ``--key TEXT``: ``value`` is what YAML makes of it, ``text`` what was typed.

    Where text is due, what was typed is taken as it is: ``--data.dataset 123`` needs no quotes within quotes.
    """

    text: str
    value: Any


class Misfit(Exception):
    """A value that does not fit. ``path`` leads to it from where the conversion began."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


def fields_of(cls: type, *, below: type = object) -> dict[str, Any]:
    """Return the keyword arguments of ``cls`` with their type hints.

    For a dataclass these are its fields, otherwise the parameters of ``__init__``. ``below`` leaves out what is
    declared by that base class or above (a transformers config has dozens of fields that no recipe should set).
    """
    if dataclasses.is_dataclass(cls):
        hints: dict[str, Any] = {}
        for ancestor in reversed(cls.__mro__[: cls.__mro__.index(below)]):
            hints |= inspect.get_annotations(ancestor, eval_str=True)
        return {
            field.name: hints[field.name]
            for field in dataclasses.fields(cls)
            if field.init and field.name in hints
        }
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind in named}


def required_of(cls: type) -> set[str]:
    """Return the names of the keyword arguments of ``cls`` that have no default."""
    return {
        p.name
        for p in inspect.signature(cls).parameters.values()
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def unwrap(value: Any) -> Any:
    """What YAML makes of a value, wherever it was given."""
    return value.value if isinstance(value, FromCommandLine) else value


def build(cls: type, tree: Any, path: tuple[str, ...] = (), *, default: Any = None) -> Any:
    """Make a ``cls`` of a mapping; raises what ``arguments_of`` and ``construct`` do."""
    return construct(cls, arguments_of(cls, tree, path, default=default), path)


def arguments_of(
    cls: type,
    tree: Any,
    path: tuple[str, ...],
    *,
    fields: Mapping[str, Any] | None = None,
    default: Any = None,
) -> dict[str, Any]:
    """The keyword arguments of ``cls`` that a mapping gives, each as its type wants it.

    ``fields`` are the keys that may be given, with their types, where these are not all of ``cls``. ``default`` is an
    instance that gives what the mapping leaves out, instead of the defaults of ``cls``.

    Raises:
        Misfit: a key is unknown or missing, or a value is of a wrong type.
    """
    fields = fields_of(cls) if fields is None else fields
    tree = unwrap(tree)
    if not isinstance(tree, Mapping):
        kind = describe(cls) if len(fields) <= 6 else f"a mapping of keys such as {next(iter(fields))}"
        advice = " (leave it out for its defaults)" if tree is None else ""
        raise Misfit(path, f"is {show(tree)}; it must be {kind}{advice}")
    for key in tree:
        if key not in fields:
            raise Misfit((*path, key), f"is not a key of recipes.{nearest(key, fields)}")
    typed = {key: getattr(default, key) for key in fields} if isinstance(default, cls) else {}
    for key in sorted(required_of(cls) & set(fields) - set(tree) - set(typed)):
        raise Misfit((*path, key), f"is missing; it must be {describe(fields[key])}")
    defaults = typed or _nested_defaults(cls)
    return typed | {
        key: convert(value, fields[key], (*path, key), defaults.get(key)) for key, value in tree.items()
    }


def construct(cls: type, arguments: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Call a class.

    Raises:
        UserError: the class itself refuses the values (its cross-field checks).
    """
    try:
        return cls(**arguments)
    except UserError:
        raise
    except _refusals() as error:
        raise UserError(f"{'.'.join(path)}: {error}") from error


def build_file(cls: type[T], tree: Mapping[str, Any], file: Path, kind: str) -> T:
    """Make a ``cls`` of what a file of some kind (``studies``) holds.

    Raises:
        UserError: it does not fit; the message names the file and the key.
    """
    try:
        return build(cls, tree)
    except Misfit as misfit:
        reason = misfit.reason.replace("is not a key of recipes", f"is not a key of {kind}")
        raise UserError(f"{file}: {'.'.join(misfit.path)} {reason}") from None
    except UserError as error:
        raise UserError(f"{file}: {str(error).lstrip(': ')}") from None


def _nested_defaults(cls: type) -> dict[str, Any]:
    """Return the defaults that are made by a factory: a mapping in a recipe may give some of their keys only."""
    if not dataclasses.is_dataclass(cls):
        return {}
    factories = {field.name: field.default_factory for field in dataclasses.fields(cls)}
    return {name: make() for name, make in factories.items() if make is not dataclasses.MISSING}


def _refusals() -> tuple[type[Exception], ...]:
    """What a class raises to refuse values. Called only when something was raised: the import takes its time."""
    from huggingface_hub.errors import StrictDataclassError

    return ValueError, TypeError, ArithmeticError, LookupError, StrictDataclassError


def convert(value: Any, hint: Any, path: tuple[str, ...], default: Any = None) -> Any:
    """Return ``value`` as ``hint`` wants it.

    Raises:
        Misfit: it does not fit.
    """
    if isinstance(value, FromCommandLine):
        try:
            return convert(value.value, hint, path)
        except Misfit:
            options = get_args(hint) if _is_union(hint) else (hint,)
            if str in options or Path in options:
                return convert(value.text, hint, path)
            raise
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    misfit = Misfit(path, f"is {show(value)}; it must be {describe(hint)}")
    if hint is Any or hint is object:
        return value
    if _is_union(hint):
        return _convert_to_one_of(value, arguments, path, misfit, default)
    if kind is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        hint_at = nearest(value, [str(option) for option in arguments]) if isinstance(value, str) else ""
        raise Misfit(path, f"{misfit.reason}.{hint_at}") if hint_at.endswith("?") else misfit
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, path, default=default)
    if kind in _LISTS:
        return _convert_list(value, tuple if kind is tuple else list, arguments, path, misfit)
    if kind in _MAPPINGS or is_typeddict(hint):
        if not isinstance(value, dict):
            raise misfit
        item_hint = arguments[1] if len(arguments) == 2 else Any
        return {key: convert(item, item_hint, (*path, key)) for key, item in value.items()}
    return _convert_scalar(value, hint, misfit)


def _convert_to_one_of(
    value: Any, options: tuple[Any, ...], path: tuple[str, ...], misfit: Misfit, default: Any
) -> Any:
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    if isinstance(value, Mapping):
        # `RoutingConfig | dict` means a mapping that the class will read: hold it to the class, so that a misspelt
        # key inside is found.
        classes = [option for option in options if dataclasses.is_dataclass(option)]
        options = tuple(classes) or options
    if len(options) == 1 and value is not None:
        try:
            return convert(value, options[0], path, default)
        except Misfit as inner:
            # The outer message says "or null" too; one that says more, or is about a place inside, stays.
            plain = inner.path == path and inner.reason.endswith(describe(options[0]))
            raise misfit if plain else inner from None
    # Exact types first, so that 3 stays an integer in `float | int`.
    for option in sorted(options, key=lambda option: option is not type(value)):
        try:
            return convert(value, option, path)
        except Misfit:
            continue
    raise misfit


def _convert_list(
    value: Any, kind: type, arguments: tuple[Any, ...], path: tuple[str, ...], misfit: Misfit
) -> Any:
    if not isinstance(value, list | tuple):
        raise misfit
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise misfit
        hints = arguments
    else:
        hints = (arguments[0] if arguments else Any,) * len(value)
    *parents, last = path
    return kind(
        convert(item, hint, (*parents, f"{last}[{index}]"))
        for index, (item, hint) in enumerate(zip(value, hints, strict=True))
    )


def _convert_scalar(value: Any, hint: Any, misfit: Misfit) -> Any:
    if hint is bool:
        fits = isinstance(value, bool)
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
            raise Misfit(misfit.path, f"{misfit.reason} (write {int(value)})")
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if fits:
            try:
                value = float(value)
            except OverflowError:
                raise Misfit(misfit.path, "is too large for a number") from None
            if not math.isfinite(value):
                raise Misfit(misfit.path, f"is {value}; it must be a finite number")
    elif hint in (str, Path):
        fits = isinstance(value, str)
    else:
        raise TypeError(f"recipes cannot hold a {hint!r}: teach {__name__} to convert it")
    if not fits:
        raise misfit
    return Path(value) if hint is Path else value


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def describe(hint: Any) -> str:
    """Say in words what a type hint asks for: ``int | None`` → "an integer or null"."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if _is_union(hint):
        options = [option for option in arguments if option is not int or float not in arguments]
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    if kind is Literal:
        return " or ".join(show(option) for option in arguments)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return f"a mapping of {', '.join(fields_of(hint))}"
    if kind in _LISTS:
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            return f"a list of {len(arguments)} values ({', '.join(describe(a) for a in arguments)})"
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if kind in _MAPPINGS or is_typeddict(hint):
        return f"a mapping, each value {describe(arguments[1])}" if arguments else "a mapping"
    return "any value" if hint is Any or hint is object else getattr(hint, "__name__", str(hint))


def show(value: Any) -> str:
    """Return a value as a recipe would write it, cut to a length that fits in one line."""
    value = unwrap(value)
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, int) and abs(value) > 10**18:
        text = "an integer of more than 18 digits"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
