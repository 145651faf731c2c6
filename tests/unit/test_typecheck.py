"""The tests' own check of shapes: each kind of call once, and no fault is missed by that."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.typecheck import check, checked_once

checked = checked_once(typechecker=check)


@checked
def double(values: Float[Tensor, "A B"], wrong: list[bool]) -> Float[Tensor, "A B"]:
    return values.repeat(2, 1) if wrong[0] else 2 * values


def scaled(by: float) -> Tensor:
    """A function within a function is made anew at each call."""

    @checked
    def scale(values: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
        return by * values if by else values[:1]

    return scale(torch.ones(3))


def test_a_fault_is_seen_whatever_has_passed_before() -> None:
    for _ in range(2):
        assert double(torch.ones(2, 3), [False]).shape == (2, 3)
        for values in (torch.ones(2), torch.ones(2, 3, dtype=torch.int64), "a"):
            with pytest.raises(Exception, match="checking the parameters"):
                double(values, [False])
        with pytest.raises(Exception, match="checking the return value"):
            double(torch.ones(2, 3), [True])
    for _ in range(2):
        assert scaled(2.0).tolist() == [2.0] * 3
        with pytest.raises(Exception, match="checking the return value"):
            scaled(0.0)


@checked
def longer(values: Float[Tensor, "N"], by: int) -> Float[Tensor, "N+1"]:
    return torch.ones(len(values) + by)


def test_sizes_that_are_computed_are_checked_at_every_size() -> None:
    assert len(longer(torch.ones(7), 1)) == 8
    for size, by in ((7, 2), (8, 0), (9, -1)):
        with pytest.raises(Exception, match="checking the return value"):
            longer(torch.ones(size), by)


@checked
def last(values: Float[Tensor, "B T"], keep: Float[Tensor, "T"]) -> Float[Tensor, "B T"]:
    return values * keep


def test_sizes_that_are_alike_are_told_from_those_that_are_not() -> None:
    assert last(torch.ones(5, 9), torch.ones(9)).shape == (5, 9)
    assert last(torch.ones(3, 4), torch.ones(4)).shape == (3, 4)
    for size in (1, 5):
        with pytest.raises(Exception, match="checking the parameters"):
            last(torch.ones(5, 9), torch.ones(size))


@checked
@dataclass
class Pair:
    left: Float[Tensor, "N"]
    right: Float[Tensor, "N"]


@checked
@dataclass
class OtherPair:
    left: Float[Tensor, "N"]
    right: Float[Tensor, "M"]


def test_fields_are_checked_each_class_by_its_own() -> None:
    for _ in range(2):
        OtherPair(torch.ones(4), torch.ones(5))
        Pair(torch.ones(4), torch.ones(4))
        with pytest.raises(Exception, match="checking the parameters"):
            Pair(torch.ones(4), torch.ones(5))
