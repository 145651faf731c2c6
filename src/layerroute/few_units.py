"""How far a bootstrap falls short where few units are drawn from."""

import math

ENOUGH = 30
"""Units from which on percentile intervals are taken as they are."""
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145),
    *(2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048),
)
"""Student's t at 97.5 %, for 1, 2, ... degrees of freedom."""
_Z = 1.960


def widening(units: int) -> float:
    """By how much the percentile interval of a mean of so many units is to be widened about the mean.

    It takes the spread to be known, and too small by sqrt((n - 1) / n): of 4 units, every fifth interval of 95 % missed
    a mean of 0. Student's t over the normal quantile, times sqrt(n / (n - 1)). 1 from 30 units on.

    Raises:
        ValueError: fewer than 2 units, which have no spread.
    """
    if units < 2:
        raise ValueError(f"{units} unit has no interval")
    return 1.0 if units >= ENOUGH else _T[units - 2] / _Z * math.sqrt(units / (units - 1))
