"""Statistics over seeds: t intervals, differences paired by seed, and the effect that could have been seen.

A seed is the unit of replication. One seed carries no interval and no test: every function says so with None,
never with a number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.80
_QUANTILES = 4000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds. ``half_width`` of the 95 % t interval is None with fewer than two values."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean itself where there is no interval."""
        return self.mean - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the mean itself where there is no interval."""
        return self.mean + (self.half_width or 0.0)


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Differences a − b of the same metric, seed by seed.

    Attributes:
        seeds: the seeds that both arms completed; only these count.
        estimate: mean difference with its interval; None without a common seed.
        p_value: two-sided paired t test; None with fewer than two common seeds.
        detectable: smallest true difference that this many seeds with this spread would have found with 80 %
            power at the 5 % level; None with fewer than two common seeds.
        documents: how many validation windows the difference is also paired by; 0 for seeds alone.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate | None
    p_value: float | None
    detectable: float | None
    documents: int = 0


def t_interval(values: Sequence[float], level: float = LEVEL) -> Estimate | None:
    """Mean and t interval of independent values; None for no value.

    Raises:
        ValueError: if a value is not finite: leave failed runs out before, and say so.
    """
    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError(f"values must be finite, got {list(values)}")
    mean = float(data.mean())
    if len(data) == 1:
        return Estimate(mean=mean, half_width=None, n=1)
    error = float(data.std(ddof=1)) / math.sqrt(len(data))
    half = float(stats.t.ppf(0.5 + level / 2, len(data) - 1)) * error
    return Estimate(mean=mean, half_width=half, n=len(data))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> PairedDifference:
    """A − b over the seeds in both (keys are seeds), with interval, paired t test and detectable effect."""
    seeds = tuple(sorted(set(a) & set(b)))
    differences = tuple(a[seed] - b[seed] for seed in seeds)
    estimate = t_interval(differences)
    if len(seeds) < 2 or estimate is None:
        return PairedDifference(
            seeds=seeds, differences=differences, estimate=estimate, p_value=None, detectable=None
        )
    deviation = float(np.std(differences, ddof=1))
    error = deviation / math.sqrt(len(seeds))
    if error == 0.0:
        p_value = 1.0 if estimate.mean == 0.0 else 0.0
    else:
        p_value = float(2 * stats.t.sf(abs(estimate.mean) / error, len(seeds) - 1))
    return PairedDifference(
        seeds=seeds,
        differences=differences,
        estimate=estimate,
        p_value=p_value,
        detectable=minimal_detectable_effect(deviation, len(seeds)),
    )


def minimal_detectable_effect(
    deviation: float, n: int, *, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The true mean difference that a two-sided paired t test finds with probability ``power``.

    The power of the t test is its normal power averaged over the sampling distribution of the standard deviation
    (scipy's noncentral t fails at the few degrees of freedom that seeds leave). ``deviation`` is the standard
    deviation of the ``n`` differences, in the metric's own unit. None for n < 2.
    """
    if n < 2:
        return None
    if deviation == 0.0:
        return 0.0
    return effect_in_errors(n - 1, power, level) * deviation / math.sqrt(n)


@lru_cache
def effect_in_errors(freedom: float, power: float = POWER, level: float = LEVEL) -> float:
    """The true effect, in standard errors, that a two-sided t test of so many degrees of freedom finds."""
    critical = float(stats.t.ppf(0.5 + level / 2, freedom))
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    needed = critical * np.sqrt(stats.chi2.ppf(quantiles, freedom) / freedom)

    def shortfall(effect: float) -> float:
        found = stats.norm.sf(needed - effect) + stats.norm.cdf(-needed - effect)
        return float(found.mean()) - power

    return float(optimize.brentq(shortfall, 0.0, 10 * critical + 10))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment for testing several hypotheses; None stays None and does not count."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted
