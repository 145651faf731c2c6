"""Result records: one run, one JSON file, written whole or not at all.

The ``TypedDict`` classes below *are* the schema: :func:`write_record` and :func:`read_record` check every record
against them, so that whoever reads a record (``lab``) may rely on its keys and types. Keys beyond
the schema are kept as they are, so that a part of the package may add figures of its own.

A record on disk is sealed: its first key says so, its last one is the SHA-256 of all the rest, and it is read only if
it is byte for byte what was written. Both keys stay on disk; a record without them (one that somebody has edited on
purpose) is read as it is.

Nothing here imports torch.
"""

import functools
import json
import math
import os
import re
import types
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from layerroute.errors import UserError, nearest
from layerroute.integrity import checksummed, replace_text
from layerroute.liveness import is_alive
from layerroute.provenance import Hardware, provenance

__all__ = [
    "SCHEMA_VERSION",
    "Record",
    "RecordSchema",
    "aside_name",
    "is_aside",
    "provenance",
    "read_record",
    "record_path",
    "utc_now",
    "write_record",
]

SCHEMA_VERSION = 1
"""The number in each record that says which keys to expect; it rises when a key changes its meaning."""
RECORD_NAME = "record.json"
_ASIDE = re.compile(r"\.earlier-\d+$")

_SEAL, _CHECKSUM = "sealed", "checksum"
_LARGEST = 256 << 20
KILLED = "the process ended without a word: it was killed, or its machine was lost"

Record = dict[str, Any]
"""A record as :func:`read_record` returns it: a plain mapping with the keys of :class:`RecordSchema`."""


class Metrics(TypedDict):
    """Quality. Losses are cross-entropy in nats per token over real tokens; accuracy is a share in 0..1."""

    validation_loss: float
    validation_perplexity: float
    validation_accuracy: float
    best_validation_loss: float
    best_step: int
    train_loss: float
    bigram_loss: NotRequired[float | None]
    steps: int


class Routing(TypedDict):
    """Where tokens went. ``rate`` and ``entropy`` are by site; a rate is the share on the expensive path.

    ``asked_rate`` is what a budget asks of a learned router, ``trained_rate`` what training had at its end.
    """

    sites: list[str]
    paths: list[str]
    expensive_path: str
    rate: dict[str, float]
    entropy: dict[str, float]
    token_entropy: NotRequired[dict[str, float] | None]
    mean_rate: float
    asked_rate: NotRequired[float | None]
    trained_rate: NotRequired[float | None]
    cost_weighted_rate: NotRequired[float | None]
    skipped: NotRequired[float | None]
    budget: NotRequired[float | None]
    balance_loss: NotRequired[float | None]
    tokens: int
    router: str
    control: NotRequired[str | None]
    causal: bool
    context: NotRequired[str | None]
    estimator: NotRequired[str | None]


class Flops(TypedDict):
    """Forward FLOPs per token at ``context_length`` tokens.

    ``forward_per_token`` counts everything that masked execution computes, ``routed_per_token`` what is needed at the
    measured rate, ``executed_per_token`` what ``FlopCounterMode`` saw.
    """

    forward_per_token: float
    routed_per_token: float
    by_part: dict[str, float]
    by_path: dict[str, float]
    executed_per_token: NotRequired[float | None]
    base_per_token: NotRequired[float | None]
    context_length: int


class CacheReads(TypedDict):
    """Bytes of its caches that a token reads, the mean over sequences of ``context_length`` tokens.

    ``keys_values`` of softmax attention and ``state`` of linear layers make ``read_per_token``. Weights are not in it.
    """

    read_per_token: float
    keys_values: float
    state: float
    context_length: int


class Timing(TypedDict):
    """Wall time in seconds; ``tokens_per_second`` is training throughput."""

    train_seconds: float
    tokens_per_second: float
    evaluation_seconds: float


class Parameters(TypedDict):
    """Numbers of parameters, in all and by part of the model."""

    total: int
    trainable: int
    by_part: dict[str, int]


class Data(TypedDict):
    """What was read. ``fingerprint`` names source, tokenizer and split; token counts are after tokenization."""

    source: str
    fingerprint: str
    tokenizer: str
    vocabulary_size: int
    train_tokens: int
    validation_tokens: int


class RecordSchema(TypedDict, total=False):
    """One run. Keys marked ``Required`` are always there; the others must be there once the run is completed."""

    schema: Required[Literal[1]]
    run: Required[str]
    arm: Required[str]
    capability: Required[str]
    seed: Required[int]
    status: Required[Literal["completed", "failed", "interrupted", "running"]]
    error: str | None
    command: Required[str]
    started: Required[str]
    finished: str | None
    recipe: Required[dict[str, Any]]
    metrics: Metrics
    curves: str | None
    token_routes: str | None
    routing: Routing | None
    flops: Flops
    cache: CacheReads
    timing: Timing
    parameters: Parameters
    data: Data
    tokens_seen: int
    versions: Required[dict[str, str]]
    revision: str | None
    dirty: bool | None
    hardware: Required[Hardware]
    resumptions: list[dict[str, Any]]


_RESULTS = ("metrics", "flops", "timing", "parameters", "data", "tokens_seen", "finished")
_SHARES = ("mean_rate", "validation_accuracy")


def record_path(path: str | os.PathLike[str]) -> Path:
    """Return the record file meant by ``path``, which is a run directory or a ``.json`` file."""
    path = Path(path)
    return path if path.suffix == ".json" and not path.is_dir() else path / RECORD_NAME


def aside_name(name: str, number: int) -> str:
    """What the folder of a run is called once it was set aside for a new run in its place."""
    return f"{name}.earlier-{number}"


def is_aside(path: Path) -> bool:
    """Whether ``path`` is, or lies in, the folder of a run that was set aside."""
    return any(_ASIDE.search(part) for part in path.parts)


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> Path:
    """Check ``record`` and write it to ``path`` (a run directory or a ``.json`` file) atomically.

    Numbers that are not finite are written as null: a score that was not reached is missing, never 0. NumPy and torch
    scalars are written as plain numbers. An older record at ``path`` stays whole until the new one is complete.

    Returns the file written.

    Raises:
        ValueError: the record does not fit the schema; the message names the key. (A mistake of the caller.)
    """
    target = record_path(path)
    plain = {key: value for key, value in _plain(record).items() if key not in (_SEAL, _CHECKSUM)}
    _check_record(plain, str(target), ValueError)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_text(target, _sealed(plain).decode())
    return target


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the record of a run directory, or of a ``.json`` file, and check it against its seal and the schema.

    The record of a run that was killed still says ``running``; where no process trains in its folder any more, it is
    returned as ``interrupted``. The file is left as it is.

    Raises:
        UserError: there is no record, it is damaged or no JSON, or a key is missing or of a wrong type; the message
            names the file and the key.
    """
    target = record_path(path)
    try:
        if target.stat().st_size > _LARGEST:
            raise UserError(f"{target} is not a result record: it is larger than any.")
        data = target.read_bytes()
        record = json.loads(data)
    except FileNotFoundError:
        raise UserError(
            f"no result record at {target}: give a run's directory, or its {RECORD_NAME}."
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {target}: {error.strerror or error}.") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{target} is not a result record: it is not valid JSON ({error}).") from None
    if isinstance(record, dict) and (_SEAL in record or _CHECKSUM in record):
        record = _unsealed(record, data, target)
    _check_record(record, str(target), UserError)
    if record["status"] == "running" and target.name == RECORD_NAME and not is_alive(target.parent):
        record |= {"status": "interrupted", "error": record.get("error") or KILLED}
    return record


def _sealed(plain: Record) -> bytes:
    return checksummed({_SEAL: True, **plain}, allow_nan=False)


def _unsealed(record: Record, data: bytes, target: Path) -> Record:
    plain = {key: value for key, value in record.items() if key not in (_SEAL, _CHECKSUM)}
    # Two marks, so that no single damage makes a sealed record look like one that never was. A lone surrogate or a
    # NaN, which only damage can put there, do not serialize.
    try:
        intact = _sealed(plain) == data
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise UserError(
            f"{target} is damaged: it is not what was written (its checksum differs). If it was changed on purpose, "
            f"remove its keys {_SEAL!r} and {_CHECKSUM!r}."
        )
    return plain


def expect_number(key: str) -> None:
    """Refuse a dotted key at which no record has a number.

    Of sections beyond the schema nothing is known, but that none is named almost as one of the schema's.

    Raises:
        UserError: naming the key, and the nearest that there is.
    """
    hint: Any = RecordSchema
    for at, part in enumerate(key.split(".")):
        if is_typeddict(hint):
            known = _hints(hint)
            if part not in known and at == 0 and not get_close_matches(part, known, cutoff=0.8):
                return
            if part not in known:
                raise UserError(f"records have no {key}.{nearest(part, known)}")
            hint = _without_none(known[part])
        elif hint is not Any:
            hint = get_args(hint)[1] if get_origin(hint) is dict else None
    if hint not in (int, float, Any):
        raise UserError(f"records have no number at {key}")


def utc_now() -> str:
    """Return the time now as ISO 8601 in UTC, to the second: the form of ``started`` and ``finished``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_record(record: Any, where: str, error: type[ValueError]) -> None:
    try:
        _check_plain(record, dict, "")
        completed = record.get("status") == "completed"
        for key in _RESULTS if completed else ():
            if record.get(key) is None:
                raise _Misfit(key, "is missing, and the status is 'completed'")
        _check_section(record, RecordSchema, "", set() if completed else {*_RESULTS, "routing"})
        if completed and record.get("routing") is not None:
            _check_routing(record["routing"])
        for section in ("metrics", "routing"):
            for key in _SHARES:
                value = (record.get(section) or {}).get(key)
                if value is not None and not 0 <= value <= 1:
                    raise _Misfit(f"{section}.{key}", f"is {value!r}; a share must be in 0..1")
    except _Misfit as misfit:
        raise error(f"{where} is not a valid result record: {misfit.key or 'it'} {misfit.reason}.") from None


class _Misfit(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


def _check_routing(routing: Record) -> None:
    sites = set(routing["sites"])
    for key in ("rate", "entropy"):
        if set(routing[key]) != sites:
            raise _Misfit(
                f"routing.{key}", f"has the sites {sorted(routing[key])}, and routing.sites {sorted(sites)}"
            )
    for site, value in routing["rate"].items():
        if not 0 <= value <= 1:
            raise _Misfit(f"routing.rate.{site}", f"is {value!r}; a share must be in 0..1")
    if routing["expensive_path"] not in routing["paths"]:
        raise _Misfit(
            "routing.expensive_path", f"is {routing['expensive_path']!r}, not one of {routing['paths']}"
        )


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return get_type_hints(schema)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    (hint,) = (option for option in get_args(hint) if option is not types.NoneType)
    return hint


def _check(value: Any, hint: Any, key: str, *, partial: bool) -> None:
    """Raise :class:`_Misfit` unless ``value`` fits ``hint``.

    ``partial`` lets keys be missing or null, which is how results of a run look that has not come to its end.
    """
    if value is None and partial:
        return
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        _check_section(value, hint, key, hint.__annotations__ if partial else ())
    elif origin in (Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return
        _check(value, _without_none(hint), key, partial=partial)
    elif origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise _Misfit(key, f"is {value!r}; it must be {' or '.join(map(repr, arguments))}")
    elif origin is list:
        _check_plain(value, list, key)
        for index, item in enumerate(value):
            _check(item, arguments[0], f"{key}[{index}]", partial=partial)
    elif origin is dict:
        _check_plain(value, dict, key)
        for name, item in value.items():
            _check(item, arguments[1], f"{key}.{name}", partial=partial)
    elif hint is not Any:
        _check_plain(value, hint, key)


def _check_section(value: Any, schema: Any, key: str, partial: Container[str]) -> None:
    """``partial`` are the keys that need not be there, whole or at all."""
    _check_plain(value, dict, key)
    for name, hint in _hints(schema).items():
        path = f"{key}.{name}" if key else name
        if name in value:
            _check(value[name], hint, path, partial=name in partial)
        elif name in schema.__required_keys__ and name not in partial:
            raise _Misfit(path, "is missing")


_NAMES = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def _check_plain(value: Any, kind: type, key: str) -> None:
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _Misfit(key, f"is {_short(value)}; it must be {_NAMES[kind]}")


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON's own types, with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
