"""What a benchmark case is made of. A case cannot time anything that it does not also put before the gate."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from layerroute.benchmark.timing import Arm

Value = str | int | float | bool | None
Facts = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One equality: what was compared, how far apart the two are, and how far they may be.

    ``deviation`` is the largest absolute difference over the largest expected magnitude; what is not finite or has
    another shape deviates infinitely.
    """

    what: str
    deviation: float
    tolerance: float

    @property
    def green(self) -> bool:
        """Whether the two are equal to round-off."""
        return self.deviation <= self.tolerance

    @classmethod
    def compare(cls, what: str, actual: Tensor, expected: Tensor, tolerance: float) -> "Check":
        """Compare two tensors."""
        deviation = float("inf")
        if actual.shape == expected.shape:
            difference = (actual.detach().double() - expected.detach().double()).abs()
            largest = difference.max() if difference.numel() else difference.sum()
            scale = expected.detach().double().abs().max() if expected.numel() else torch.ones(())
            ratio = float(largest / scale.clamp_min(torch.finfo(torch.float64).tiny))
            deviation = ratio if ratio == ratio else float("inf")
        return cls(what=what, deviation=deviation, tolerance=tolerance)


def agree(
    what: str, actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float
) -> Iterator[Check]:
    """Compare tensors of the same names; ``what`` tells who is compared, with ``{}`` for the name."""
    for name, tensor in expected.items():
        yield Check.compare(what.format(name), actual[name], tensor, tolerance)


def against_the_best(
    record: Mapping[str, Any], own: str, rivals: Sequence[str]
) -> Iterator[tuple[str, float, str, dict[str, float]]]:
    """By row that has all of these arms: title, speed of ``own`` over the best rival, that rival, all speed-ups."""
    for row in record["rows"]:
        speed = {name: arm["speedup"]["median"] for name, arm in row["arms"].items()}
        if speed.keys() >= {own, *rivals}:
            rival = max(rivals, key=lambda name: speed[name])
            yield row["title"], speed[own] / speed[rival], rival, speed


class RedGate(Exception):
    """The arms do not compute the same: nothing is timed."""

    def __init__(self, where: str, checks: Sequence[Check]) -> None:
        worst = max(
            (check for check in checks if not check.green),
            key=lambda check: check.deviation / (check.tolerance or sys.float_info.min),
        )
        super().__init__(
            f"{where}: {worst.what} differ by {worst.deviation:.3g} of the largest value, "
            f"{worst.tolerance:.3g} is allowed; nothing was timed"
        )


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The arm that does what no routing can beat: work left out for good.

    Attributes:
        factor: what the limit saves over the whole is multiplied by this, where the arm could not leave out exactly
            the share in question (6 of 25 layers for 25 % of them: 6.25 / 6).
        whole: the arm from which work was left out; None is the baseline.
    """

    arm: str
    factor: float = 1.0
    whole: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A comparison whose tensors and models exist.

    Attributes:
        gate: computes the equalities that must hold before the arms are timed; never empty.
        count: figures of the arms that are not times (parameters, FLOPs, memory); called once the gate is open.
        limit: the arm of which the others reach a share; None if there is none.
        needed: by arm, the FLOPs that its result needs however they are computed; with them the record has the share
            of the speed of a large matrix product that the arm reaches.
        dtype: of that product.
        tokens: tokens that one call of an arm works through, where only the gate tells. Default: the comparison's.
    """

    gate: Callable[[], Iterator[Check] | Sequence[Check]]
    arms: Mapping[str, Arm]
    count: Callable[[], Facts] = dict
    limit: Limit | None = None
    needed: Mapping[str, float] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    tokens: Callable[[], int] | None = None

    def checked(self, title: str) -> list[Check]:
        """Open the gate, or raise ``RedGate``."""
        checks = list(self.gate())
        if not checks:
            raise ValueError(f"{title}: a comparison without a check may not be timed")
        if not all(check.green for check in checks):
            raise RedGate(title, checks)
        return checks


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of a benchmark, prepared only when its turn comes.

    Attributes:
        title: what tells this row from the others, in few words.
        labels: the same as data.
        baseline: the arm that the others are held against.
        tokens: tokens that one call of an arm works through.
    """

    title: str
    labels: Mapping[str, Value]
    baseline: str
    tokens: int
    prepare: Callable[[], Prepared]
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one name of ``layerroute bench`` stands for.

    Attributes:
        comparisons: lists the rows without doing any of their work; raises UserError for options that make no sense.
        conclude: what the record of all rows comes to, as data and as lines; None if there is no such thing.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    comparisons: Callable[[argparse.Namespace], Sequence[Comparison]]
    conclude: Callable[[Mapping[str, Any]], tuple[dict[str, float], list[str]]] | None = None
