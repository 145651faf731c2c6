"""Generators of recall sequences: N rows of T tokens, and which of them are answers.

All randomness is the raw output of PCG64, which numpy promises to keep, so that data are the same on every machine and
in every version.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from layerroute.data.recall.configuration import FIRST_KEY, MARK, RecallConfig
from layerroute.data.sequence import random_bits
from layerroute.errors import UserError

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


def generate(
    config: RecallConfig,
    rows: int,
    length: int,
    *,
    seed: str,
    pairs: int | None = None,
    queries: int | None = None,
) -> tuple[Ids, Mask]:
    """Sequences of a task.

    Args:
        rows, length: N and T; every row fills T, with filler where the task leaves room.
        seed: any text; the same text gives the same sequences.
        pairs: default: the task's own.
        queries: of ``mqar``. Default: those of a training sequence of this length.

    Returns:
        Token ids (N, T), and a mask (N, T) of the tokens that are answers: each can be known from what stands before.

    Raises:
        UserError: T is too short for the task.
    """
    asked = config.asked(length) if queries is None else queries
    count = config.pairs if pairs is None else pairs
    least = config.least_length(asked, count if config.noise else None)
    if length < least:
        raise UserError(
            f"data.sequence_length is {length}, and {config.task} with {config.pairs} pairs needs {least} tokens"
        )
    draw = Draw(seed)
    return GENERATORS[config.task](config, draw, rows, length, count, asked)


class Draw:
    """By any text the same: uniform numbers in [0, 1) and what follows from them."""

    def __init__(self, seed: str) -> None:
        self._bits = random_bits(f"recall {seed}")

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        raw = self._bits.random_raw(int(np.prod(shape)))
        found = (np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64)
        return found.reshape(shape) * 2.0**-53

    def integers(self, high: int, *shape: int) -> Ids:
        return (self.uniform(*shape) * high).astype(np.int64)

    def distinct(self, high: int, rows: int, count: int) -> Ids:
        """``count`` different integers below ``high`` in random order, for each row."""
        return np.argsort(self.uniform(rows, high), axis=1, kind="stable")[:, :count].astype(np.int64)


def _mqar(
    config: RecallConfig, draw: Draw, rows: int, length: int, pairs: int, queries: int
) -> tuple[Ids, Mask]:
    keys, values = _keys(config, draw, rows, pairs), _values(config, draw, rows, pairs)
    ids, answers = _haystack(config, draw, rows, length)
    # With fewer pairs than the task has, each is asked for several times: as many answers to learn from.
    rounds = -(-queries // pairs)
    asked = np.concatenate([draw.distinct(pairs, rows, pairs) for _ in range(rounds)], axis=1)[:, :queries]
    told = pairs * config.writes
    if config.noise is None:
        tell = np.broadcast_to(np.arange(0, 2 * told, 2), (rows, told))
        # Sampling without replacement by weights: the largest of u^(1/w) (Efraimidis and Spirakis 2006), in logarithms.
        slots = length - 2 * told - queries
        weights = np.arange(1, slots + 1, dtype=np.float64) ** (config.gap_power - 1.0)
        scores = np.log(np.maximum(draw.uniform(rows, slots), 2.0**-53)) / weights
        ask = 2 * told + _apart(np.argsort(-scores, axis=1, kind="stable")[:, :queries])
    else:
        slots = length - told - queries
        place = np.sort(_apart(draw.distinct(slots, rows, told + queries)), axis=1)
        tell, ask = place[:, :told], place[:, told:]
    row = np.arange(rows)[:, None]
    which, what = _told(config, draw, values)
    ids[row, tell], ids[row, tell + 1] = keys[row, which], what
    ids[row, ask], ids[row, ask + 1] = keys[row, asked], values[row, asked]
    answers[row, ask + 1] = True
    return ids, answers


def _told(config: RecallConfig, draw: Draw, values: Ids) -> tuple[Ids, Ids]:
    """Which pair is told at each turn, and with which value: ``values`` (N, pairs) the last time."""
    rows, pairs = values.shape
    if config.writes == 1:
        return np.broadcast_to(np.arange(pairs), values.shape), values
    which = draw.distinct(pairs * config.writes, rows, pairs * config.writes) % pairs
    # Going back in time, each value differs from the one after it.
    first = FIRST_KEY + config.keys
    steps = 1 + draw.integers(config.values - 1, rows, pairs, config.writes)
    steps[:, :, -1] = 0
    earlier = np.flip(np.cumsum(np.flip(steps, axis=2), axis=2), axis=2)
    each = first + (values[:, :, None] - first + earlier) % config.values
    turns = np.argsort(which, axis=1, kind="stable")  # the turns of each pair together, in order of time
    what = np.empty_like(which)
    np.put_along_axis(what, turns, each.reshape(rows, -1), axis=1)
    return which, what


def _needle(
    config: RecallConfig, draw: Draw, rows: int, length: int, pairs: int, *_: int
) -> tuple[Ids, Mask]:
    keys, values = _keys(config, draw, rows, pairs), _values(config, draw, rows, pairs)
    ids, answers = _haystack(config, draw, rows, length)
    place = _apart(draw.distinct(length - 3 - pairs, rows, pairs))
    row = np.arange(rows)[:, None]
    ids[row, place], ids[row, place + 1] = keys, values
    ids[:, -3], ids[:, -2], ids[:, -1] = MARK, keys[:, 0], values[:, 0]
    answers[:, -1] = True
    return ids, answers


def _copying(
    config: RecallConfig, draw: Draw, rows: int, length: int, pairs: int, *_: int
) -> tuple[Ids, Mask]:
    ids, answers = _haystack(config, draw, rows, length)
    text = _values(config, draw, rows, pairs)
    # Filler comes first, so that what is copied is as far away at every length.
    start = length - 2 * pairs - 1
    ids[:, start : start + pairs], ids[:, start + pairs], ids[:, start + pairs + 1 :] = text, MARK, text
    answers[:, start + pairs + 1 :] = True
    return ids, answers


def _induction(config: RecallConfig, draw: Draw, rows: int, length: int, *_: int) -> tuple[Ids, Mask]:
    ids = _values(config, draw, rows, length)
    answers = np.zeros((rows, length), dtype=np.bool_)
    row = np.arange(rows)
    place = draw.integers(length - 4, rows)
    key = _keys(config, draw, rows, 1)[:, 0]
    ids[row, place], ids[:, -2] = key, key
    ids[:, -1] = ids[row, place + 1]
    answers[:, -1] = True
    return ids, answers


def _apart(chosen: Ids) -> Ids:
    """Where pairs of tokens begin whose order and gaps are those of different ``chosen`` slots of one token.

    No place is favoured, odd or even: a router that takes every fourth token must meet questions like any other.
    """
    rank = np.argsort(np.argsort(chosen, axis=1, kind="stable"), axis=1, kind="stable")
    return (chosen + rank).astype(np.int64)


def _keys(config: RecallConfig, draw: Draw, rows: int, count: int) -> Ids:
    return FIRST_KEY + draw.distinct(config.keys, rows, count)


def _values(config: RecallConfig, draw: Draw, rows: int, count: int) -> Ids:
    return FIRST_KEY + config.keys + draw.integers(config.values, rows, count)


def _haystack(config: RecallConfig, draw: Draw, rows: int, length: int) -> tuple[Ids, Mask]:
    ids = FIRST_KEY + config.keys + config.values + draw.integers(config.fillers, rows, length)
    return ids, np.zeros((rows, length), dtype=np.bool_)


GENERATORS: dict[str, Callable[[RecallConfig, Draw, int, int, int, int], tuple[Ids, Mask]]] = {
    "mqar": _mqar,
    "needle": _needle,
    "copying": _copying,
    "induction": _induction,
}
"""By task: configuration, source of all randomness, rows, length, pairs and queries; to ids and the mask of answers."""
