"""Differences of layer-skipping arms in nats, paired by seed and by window of text."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerroute.lab.arms import Arm
from layerroute.lab.crossed import crossed_test
from layerroute.lab.format import listing
from layerroute.lab.statistics import minimal_detectable_effect

DRAWS = 10_000
Losses = Mapping[int, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much higher the routed arm's validation loss is than a rival's, in nats; negative: routing is better.

    Attributes:
        mean, low, high: mean and 95 % interval: with two or more seeds in common that of ``crossed_difference``, over
            seeds and windows of text; with one a bootstrap over windows, which says nothing of other seeds.
        seeds, windows: how many of each.
        detectable: the smallest true difference that would have been found with 80 % power.
    """

    mean: float
    low: float
    high: float
    seeds: int
    windows: int
    detectable: float | None = None

    @property
    def outcome(self) -> str:
        """``wins``, ``loses`` or ``cannot be told``, of the routed arm."""
        return "wins" if self.high < 0 else "loses" if self.low > 0 else "cannot be told"


def window_losses(arm: Arm) -> dict[int, NDArray[np.float64]]:
    """Losses by validation window of every completed run that has them."""
    found = {run.seed: run.value("validation", "window_losses") for run in arm.completed}
    return {seed: np.asarray(losses, dtype=np.float64) for seed, losses in found.items() if losses}


def paired_gap(subject: Arm, rival: Arm) -> Gap | None:
    """Paired difference of two arms; None where they have no seed, or not the same windows, in common."""
    return gap_between(window_losses(subject), window_losses(rival))


def why_unpaired(subject: Arm, rival: Arm) -> str:
    """Why ``paired_gap`` is None, in a few words."""
    ours, theirs = window_losses(subject), window_losses(rival)
    lacking = [arm.label for arm, losses in ((subject, ours), (rival, theirs)) if not losses]
    if lacking:
        return f"no losses by window of {listing(lacking)}"
    if not set(ours) & set(theirs):
        seeds = (listing([str(seed) for seed in sorted(losses)]) for losses in (ours, theirs))
        return f"no seed in common ({' against '.join(seeds)})"
    counts = ("/".join(map(str, sorted({len(x) for x in losses.values()}))) for losses in (ours, theirs))
    return f"not the same windows of text ({' against '.join(counts)})"


def gap_between(ours: Losses, theirs: Losses, *, draws: int = DRAWS) -> Gap | None:
    """``ours`` less ``theirs``, each losses by window by seed; None as in ``paired_gap``."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds or len({len(x) for s in seeds for x in (ours[s], theirs[s])}) != 1:
        return None
    matrix = np.stack([ours[seed] - theirs[seed] for seed in seeds])
    count, windows = matrix.shape
    if count > 1 and windows > 1:
        found = crossed_test(matrix)
        mean, half = float(found.mean), float(found.half_width)
        return Gap(
            mean=mean,
            low=mean - half,
            high=mean + half,
            seeds=count,
            windows=windows,
            detectable=float(found.detectable),
        )
    generator = np.random.default_rng(0)
    values = matrix.mean(axis=0)
    means = values[generator.integers(windows, size=(draws, windows))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    spread = float(values.std(ddof=1)) if windows > 1 else 0.0
    return Gap(
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        seeds=count,
        windows=windows,
        detectable=minimal_detectable_effect(spread, windows),
    )
