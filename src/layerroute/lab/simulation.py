"""Studies that never were: how often the tests claim what is not there, and find what is.

A study is drawn as runs behave: a difference that belongs to the seed, one that belongs to the document, and noise of
their meeting, all normal, about a true difference that we choose.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from layerroute.lab.crossed import crossed_test, expected_detectable
from layerroute.lab.statistics import LEVEL

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviations of differences between two arms, in nats: by seed, by document, and of their meeting."""

    seed: float
    document: float
    rest: float


@dataclass(frozen=True, kw_only=True)
class ClaimRates:
    """Share of studies in which each test claims a difference at the 5 % level.

    ``crossed`` is what reports use where windows are recorded; the other two show what it guards against.
    """

    crossed: float
    seeds_alone: float
    documents_alone: float


def simulate_studies(
    studies: int, *, seeds: int, documents: int, spread: Spread, effect: float, random_seed: int = 0
) -> ClaimRates:
    """Draw studies with a true difference of ``effect`` nats and test each."""
    generator = np.random.default_rng(random_seed)
    differences = (
        effect
        + spread.seed * generator.standard_normal((studies, seeds, 1))
        + spread.document * generator.standard_normal((studies, 1, documents))
        + spread.rest * generator.standard_normal((studies, seeds, documents))
    )
    level = 1 - LEVEL
    return ClaimRates(
        crossed=float((crossed_test(differences).p_value < level).mean()),
        seeds_alone=float((_p_of_means(differences.mean(axis=2)) < level).mean()),
        documents_alone=float((_p_of_means(differences.mean(axis=1)) < level).mean()),
    )


def planted_effect(spread: Spread, *, seeds: int, documents: int) -> float:
    """The true difference that ``crossed_test`` finds with 80 % power, if this were the spread."""
    by_seed = (spread.seed**2 + spread.rest**2 / documents) / seeds
    by_document = (spread.document**2 + spread.rest**2 / seeds) / documents
    return expected_detectable(by_seed, by_document, seeds, documents)


def _p_of_means(means: Floats) -> Floats:
    """Two-sided one-sample t tests along the last axis."""
    p_values: Floats = stats.ttest_1samp(means, 0.0, axis=-1).pvalue
    return p_values
