"""Differences paired by seed and by document: a claim must hold for other seeds *and* for other text.

All runs of a study are scored on the same validation windows. A test over seeds alone takes these windows for all the
text there is; a test over windows alone takes these runs for all the runs there are. Each is too sure of itself where
the other varies. Seeds and windows are crossed random effects, and the test here is min F′ (Clark 1973, "The
language-as-fixed-effect fallacy"): the variance of the mean over seeds plus that over windows, with Satterthwaite's
degrees of freedom. What is left beside both effects counts twice, on the safe side; and since Satterthwaite's degrees
of freedom are an estimate, the test is never surer than the exact one over seeds alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from layerroute.lab.statistics import LEVEL, Estimate, PairedDifference, effect_in_errors

Floats = NDArray[np.float64]

FEWEST_DOCUMENTS = 8


@dataclass(frozen=True, kw_only=True)
class CrossedTest:
    """Results of ``crossed_test``; every array has the shape of the studies, (...).

    ``half_width`` is that of the 95 % interval; ``detectable`` the smallest true difference that is found with about
    80 % power (76 to 86 % over simulated spreads, see :mod:`layerroute.lab.simulation`).
    """

    mean: Floats
    half_width: Floats
    p_value: Floats
    detectable: Floats


def crossed_test(differences: Floats) -> CrossedTest:
    """Test the mean of differences (..., seeds, documents) against 0 at the 5 % level.

    Raises:
        ValueError: fewer than two seeds or documents.
    """
    seeds, documents = differences.shape[-2:]
    if seeds < 2 or documents < 2:
        raise ValueError(f"a crossed test needs two seeds and two documents, got {seeds} and {documents}")
    by_seed = differences.mean(axis=-1).var(axis=-1, ddof=1) / seeds
    by_document = differences.mean(axis=-2).var(axis=-1, ddof=1) / documents
    mean = differences.mean(axis=(-2, -1))
    crossed = _judge(mean, by_seed + by_document, _freedom(by_seed, by_document, seeds, documents))
    alone = _judge(mean, by_seed, np.full_like(mean, seeds - 1.0))
    half_width, p_value, detectable = (np.maximum(a, b) for a, b in zip(crossed, alone, strict=True))
    return CrossedTest(mean=mean, half_width=half_width, p_value=p_value, detectable=detectable)


def expected_detectable(by_seed: float, by_document: float, seeds: int, documents: int) -> float:
    """``detectable`` for known variances of the mean over seeds and over documents."""
    one, other = np.array(by_seed), np.array(by_document)
    crossed = _detectable(one + other, _freedom(one, other, seeds, documents))
    return float(max(crossed, _detectable(one, np.array(seeds - 1.0))))


def _freedom(by_seed: Floats, by_document: Floats, seeds: int, documents: int) -> Floats:
    variance = by_seed + by_document
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (by_seed**2 / (seeds - 1) + by_document**2 / (documents - 1))
    return np.where(variance > 0, freedom, seeds - 1.0)


def _judge(mean: Floats, variance: Floats, freedom: Floats) -> tuple[Floats, Floats, Floats]:
    error = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    half_width = stats.t.ppf(0.5 + LEVEL / 2, freedom) * error
    return half_width, 2 * stats.t.sf(score, freedom), _detectable(variance, freedom)


def _detectable(variance: Floats, freedom: Floats) -> Floats:
    # Degrees of freedom in whole steps: the power of the test moves little between, and each costs a root search.
    effects = np.vectorize(effect_in_errors, otypes=[np.float64])(np.maximum(1.0, np.floor(freedom)))
    return np.sqrt(variance) * effects


def crossed_difference(
    a: Mapping[int, Sequence[float]], b: Mapping[int, Sequence[float]]
) -> PairedDifference | None:
    """``a`` − ``b`` over common seeds, each mapping seeds to the losses of the same windows in the same order.

    None where it cannot be made: fewer than two common seeds, fewer than 8 windows, or windows that do not match.
    """
    seeds = tuple(sorted(set(a) & set(b)))
    lengths = {len(losses) for seed in seeds for losses in (a[seed], b[seed])}
    if len(seeds) < 2 or len(lengths) != 1 or min(lengths) < FEWEST_DOCUMENTS:
        return None
    matrix = np.array([np.subtract(a[seed], b[seed]) for seed in seeds], dtype=np.float64)
    if not np.isfinite(matrix).all():
        return None
    found = crossed_test(matrix)
    return PairedDifference(
        seeds=seeds,
        differences=tuple(float(value) for value in matrix.mean(axis=1)),
        estimate=Estimate(mean=float(found.mean), half_width=float(found.half_width), n=len(seeds)),
        p_value=float(found.p_value),
        detectable=float(found.detectable),
        documents=matrix.shape[1],
    )
