"""The tests' own check of shapes: each kind of call once, and no fault is missed by that."""

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
