"""Statistics over seeds and over text: intervals, paired differences, and the effect that could have been seen.

A seed is the unit of replication. One seed carries no interval and no test over seeds: every function says so with
None, never with a number.

All runs of a study are scored on the same windows of text. A test over seeds alone takes these windows for all the
text there is; a test over windows alone takes these runs for all the runs there are. Each is too sure of itself where
the other varies. So where both are there the test is min F′ (Clark 1973, "The language-as-fixed-effect fallacy"): the
variance of the mean over seeds plus that over windows, with Satterthwaite's degrees of freedom. What is left beside
both effects counts twice, on the safe side; and since these degrees of freedom are an estimate, the test is never surer
than the exact one over seeds alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from layerroute.few_units import widening

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WindowLosses = Mapping[int, Sequence[float] | Floats]

LEVEL = 0.95
POWER = 0.80
DRAWS = 10_000
FEWEST_WINDOWS = 8
_QUANTILES = 4000
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds. ``half_width`` of the 95 % t interval is None with fewer than two values."""

    mean: float
    half_width: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Differences a − b of the same metric, paired by seed and, where ``windows`` is not 0, by window of text.

    Attributes:
        seeds: the seeds that count: those that both arms completed.
        by_seed: the difference of each.
        mean, low, high: with the ends of the 95 % interval, None where there is none.
        p_value: two-sided, of no difference; None with fewer than two seeds.
        detectable: smallest true difference that so much spread would have shown with 80 % power at the 5 % level.
    """

    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    mean: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    detectable: float | None = None
    windows: int = 0

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Both ends."""
        return self.low, self.high


def t_interval(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t interval of independent values; None for no value.

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
    half = float(special.stdtrit(len(data) - 1, 0.5 + LEVEL / 2)) * error
    return Estimate(mean=mean, half_width=half, n=len(data))


def by_seed(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """A − b over the seeds in both (keys are seeds); None without a common one."""
    return _judged(*_paired(*({seed: [value] for seed, value in one.items()} for one in (a, b))), windows=0)


def by_seed_and_window(a: WindowLosses, b: WindowLosses, fewest: int = FEWEST_WINDOWS) -> Difference | None:
    """A − b over common seeds, each mapping seeds to the losses of the same windows in the same order.

    None where it cannot be made: fewer than two common seeds, too few windows, or windows that do not match.
    """
    seeds, matrix = _paired(a, b)
    enough = matrix is not None and len(seeds) > 1 and matrix.shape[1] >= fewest
    return _judged(seeds, matrix) if enough else None


def by_window(a: WindowLosses, b: WindowLosses) -> Difference | None:
    """As ``by_seed_and_window`` with two windows or more; else a bootstrap over windows, which tells nothing of seeds.

    None where they have no seed, or not the same windows, in common, or one window, which has no interval.
    """
    seeds, matrix = _paired(a, b)
    if matrix is None or matrix.shape[1] < 2:
        return None
    if (crossed := by_seed_and_window(a, b, fewest=2)) is not None:
        return crossed
    values = matrix.mean(axis=0)
    low, high = bootstrap(values).tolist()
    return Difference(
        seeds=seeds,
        by_seed=tuple(matrix.mean(axis=1).tolist()),
        mean=float(values.mean()),
        low=low,
        high=high,
        detectable=minimal_detectable_effect(float(values.std(ddof=1)), len(values)),
        windows=len(values),
    )


def _paired(a: WindowLosses, b: WindowLosses) -> tuple[tuple[int, ...], Floats | None]:
    """The common seeds, and their differences (seeds, windows); None where windows do not match or are not finite."""
    seeds = tuple(sorted(set(a) & set(b)))
    if len({len(losses) for seed in seeds for losses in (a[seed], b[seed])}) != 1:
        return seeds, None
    matrix = np.array([np.subtract(a[seed], b[seed]) for seed in seeds], dtype=np.float64)
    return seeds, matrix if np.isfinite(matrix).all() else None


def _judged(seeds: tuple[int, ...], matrix: Floats | None, windows: int | None = None) -> Difference | None:
    if matrix is None:
        return None
    means, windows = tuple(matrix.mean(axis=1).tolist()), matrix.shape[1] if windows is None else windows
    if len(seeds) < 2:
        return Difference(seeds=seeds, by_seed=means, mean=means[0], windows=windows)
    mean, half, p_value, detectable = map(float, crossed_test(matrix))
    return Difference(
        seeds=seeds,
        by_seed=means,
        mean=mean,
        low=mean - half,
        high=mean + half,
        p_value=p_value,
        detectable=detectable,
        windows=windows,
    )


def crossed_test(differences: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Test the mean of differences (..., seeds, windows) against 0 at the 5 % level; over seeds alone with one window.

    Returns:
        Mean, half width of the 95 % interval, p value, and the smallest true difference that is found with about 80 %
        power (76 to 86 % over simulated spreads), each (...).

    Raises:
        ValueError: fewer than two seeds.
    """
    seeds, windows = differences.shape[-2:]
    if seeds < 2:
        raise ValueError(f"a test over seeds needs two seeds, got {seeds}")
    over_seeds = differences.mean(axis=-1).var(axis=-1, ddof=1) / seeds
    mean = differences.mean(axis=(-2, -1))
    alone = _judge(mean, over_seeds, np.full_like(mean, seeds - 1.0))
    if windows < 2:
        return mean, *alone
    over_windows = differences.mean(axis=-2).var(axis=-1, ddof=1) / windows
    variance = over_seeds + over_windows
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (over_seeds**2 / (seeds - 1) + over_windows**2 / (windows - 1))
    crossed = _judge(mean, variance, np.where(variance > 0, freedom, seeds - 1.0))
    return mean, *map(np.maximum, crossed, alone)


def _judge(mean: Floats, variance: Floats, freedom: Floats) -> tuple[Floats, Floats, Floats]:
    """Half width, p value and detectable effect of a mean of this variance."""
    error = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    # Degrees of freedom in whole steps: the power of the test moves little between, and each costs a root search.
    effects = np.vectorize(effect_in_errors, otypes=[np.float64])(np.maximum(1.0, np.floor(freedom)))
    half_width = special.stdtrit(freedom, 0.5 + LEVEL / 2) * error
    return half_width, 2 * special.stdtr(freedom, -score), error * effects


def minimal_detectable_effect(deviation: float, n: int) -> float | None:
    """The true mean difference that a two-sided paired t test at the 5 % level finds with 80 % power.

    ``deviation`` is the standard deviation of the ``n`` differences, in the metric's own unit. None for n < 2.
    """
    return None if n < 2 else effect_in_errors(n - 1) * deviation / math.sqrt(n)


@lru_cache
def effect_in_errors(freedom: float) -> float:
    """The true effect, in standard errors, that a two-sided t test of so many degrees of freedom finds.

    The power of the t test is its normal power averaged over the sampling distribution of the standard deviation
    (scipy's noncentral t fails at the few degrees of freedom that seeds leave).
    """
    from scipy import optimize  # slow to load, and one seed needs none of it

    critical = float(special.stdtrit(freedom, 0.5 + LEVEL / 2))
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    needed = critical * np.sqrt(2 * special.gammaincinv(freedom / 2, quantiles) / freedom)

    def shortfall(effect: float) -> float:
        found = special.ndtr(effect - needed) + special.ndtr(-needed - effect)
        return float(found.mean()) - POWER

    return float(optimize.brentq(shortfall, 0.0, 10 * critical + 10))


def bootstrap(
    *samples: Floats,
    statistic: Callable[..., Floats] = np.mean,
    draws: int = DRAWS,
    level: float = LEVEL,
    generator: np.random.Generator | None = None,
) -> Floats:
    """Low and high end of the percentile bootstrap interval, (2, ...), widened where there are few units.

    What ``scipy.stats.bootstrap`` gives, which takes longer to import than most reports to compute.

    Args:
        samples: (..., units); the units are drawn for all of them alike.
        statistic: of as many samples and an ``axis``; a NaN is a draw that says nothing.
        generator: default one of seed 0, so that the same samples give the same numbers.
    """
    if samples[0].shape[-1] < 2:
        alone = statistic(*samples, axis=-1)
        return np.stack([alone, alone])
    generator, units = generator or np.random.default_rng(0), samples[0].shape[-1]
    found = []
    for begin in range(0, draws, _BATCH):
        drawn = generator.integers(0, units, (min(_BATCH, draws - begin), units))
        found.append(statistic(*(sample[..., drawn] for sample in samples), axis=-1))
    low_and_high: Floats = np.nanquantile(
        np.concatenate(found, axis=-1), [(1 - level) / 2, (1 + level) / 2], axis=-1
    )
    if (wider := widening(units, level)) == 1.0:
        return low_and_high
    whole = statistic(*samples, axis=-1)
    return whole + wider * (low_and_high - whole)


def permutation_test(
    values: Floats, groups: Ints, blocks: Ints, *, draws: int, generator: np.random.Generator
) -> Floats:
    """P values, by column, of the hypothesis that the group of a value has nothing to do with its size.

    The statistic is the spread of the groups' means. Values are shuffled within their blocks only, for which
    ``scipy.stats.permutation_test`` has no scheme.

    Args:
        values: (values, columns).
        groups, blocks: (values,): what each value belongs to, counted from 0.
    """
    member = (groups == np.arange(groups.max() + 1)[:, None]).astype(np.float64)
    counts, overall = member.sum(axis=1)[:, None], values.mean(axis=0)
    places = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]

    def spread(some: Floats) -> Floats:
        found: Floats = (counts * (member @ some / counts - overall) ** 2).sum(axis=0)
        return found

    observed, reached = spread(values) - 1e-12, np.zeros(values.shape[1])
    for _ in range(draws):
        order = np.arange(len(values))
        for place in places:
            order[place] = generator.permutation(place)
        reached += spread(values[order]) >= observed
    p_values: Floats = (1 + reached) / (1 + draws)
    return p_values


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment for testing several hypotheses; None stays None and does not count."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        adjusted[index] = largest
    return adjusted


def pareto_front(points: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of the points that are on the front, every coordinate being better the lower it is.

    A point is off the front if another one is no worse in every coordinate and better in at least one. Equal points
    are on it together. In order of the first coordinate, then of the others.
    """

    def beaten(point: Sequence[float]) -> bool:
        return any(
            tuple(other) != tuple(point) and (np.array(other) <= point).all() for other in points.values()
        )

    front = [name for name, point in points.items() if not beaten(point)]
    return sorted(front, key=lambda name: (tuple(points[name]), name))
