import math

import numpy as np
import pytest
import torch
from scipy import stats

from layerroute.errors import UserError
from layerroute.few_units import student_t
from layerroute.lab.statistics import (
    bootstrap,
    by_seed,
    by_window,
    holm,
    minimal_detectable_effect,
    t_interval,
)
from layerroute.skipping.calibration.heldout import paired_bootstrap


def test_interval_is_student_t() -> None:
    values = [4.1, 4.2, 4.4]
    found = t_interval(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found.half_width == pytest.approx(found.mean - low) and found.half_width == pytest.approx(
        high - found.mean
    )
    assert found.n == 3


@pytest.mark.parametrize("shape", [(30,), (3, 30), (1,)])
def test_the_bootstrap_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    ours, theirs = np.random.default_rng(1).random((2, *shape))

    def ratio(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return one.mean(axis=axis) / other.mean(axis=axis)

    found = bootstrap(ours, theirs, statistic=ratio, draws=700)
    if shape[-1] == 1:
        assert found.tolist() == [ratio(ours, theirs, -1)] * 2
        return
    drawn = stats.bootstrap(
        (ours, theirs), ratio, n_resamples=700, batch=256, vectorized=True, paired=True, axis=-1,
        method="percentile", random_state=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    np.testing.assert_allclose(found, np.quantile(drawn, [0.025, 0.975], axis=-1), rtol=1e-14)


def test_one_value_has_no_interval() -> None:
    found = t_interval([4.1])
    assert found is not None
    assert found.half_width is None
    assert t_interval([]) is None


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        t_interval([1.0, math.nan])


def test_by_seed_uses_common_seeds_only() -> None:
    found = by_seed({42: 4.0, 43: 4.1, 44: 9.9}, {42: 4.1, 43: 4.3, 45: 0.0})
    assert found is not None and found.seeds == (42, 43)
    assert found is not None and found.by_seed == pytest.approx((-0.1, -0.2))
    expected = stats.ttest_rel([4.0, 4.1], [4.1, 4.3]).pvalue
    assert found.p_value == pytest.approx(expected)


def test_pairing_removes_what_seeds_share() -> None:
    ours = {seed: seed + 0.1 + 0.001 * (seed % 2) for seed in range(5)}
    theirs = {seed: float(seed) for seed in range(5)}
    found = by_seed(ours, theirs)
    assert found is not None and found.p_value is not None
    assert found.p_value < 1e-6
    assert stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue > 0.5


@pytest.mark.parametrize("seeds", [(), (42,)])
def test_fewer_than_two_pairs_carry_no_test(seeds: tuple[int, ...]) -> None:
    found = by_seed(dict.fromkeys(seeds, 4.0), dict.fromkeys(seeds, 4.1))
    if not seeds:
        assert found is None
    else:
        assert found is not None and (found.p_value, found.low, found.detectable) == (None, None, None)


def test_equal_differences() -> None:
    same = by_seed({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0})
    apart = by_seed({1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0})
    assert same is not None and apart is not None
    assert (same.p_value, apart.p_value) == (1.0, 0.0)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_detectable_effect_is_found_with_its_power(n: int) -> None:
    effect = minimal_detectable_effect(1.0, n)
    assert effect is not None
    sample = np.random.default_rng(n).normal(effect, 1.0, (20_000, n))
    p_values = stats.ttest_1samp(sample, 0.0, axis=1).pvalue
    assert (p_values < 0.05).mean() == pytest.approx(0.8, abs=0.02)


def test_detectable_effect_scales_with_spread_and_needs_two_seeds() -> None:
    one, two = minimal_detectable_effect(1.0, 4), minimal_detectable_effect(2.0, 4)
    assert one is not None
    assert two == pytest.approx(2 * one)
    assert minimal_detectable_effect(0.0, 3) == 0.0
    assert minimal_detectable_effect(1.0, 1) is None


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_null_effects_are_claimed_at_the_stated_rate_and_planted_ones_found() -> None:
    generator = np.random.default_rng(7)
    studies, seeds = 1000, 5
    shared = generator.normal(4.0, 0.05, (studies, seeds))
    null = generator.normal(0.0, 0.01, (studies, seeds))
    claimed = found = 0
    for base, noise in zip(shared, null, strict=True):
        theirs = dict(enumerate(base))
        for shift in (0.0, 0.03):
            one = by_seed(dict(enumerate(base + noise - shift)), theirs)
            assert one is not None and one.p_value is not None
            claimed += one.p_value < 0.05 and not shift
            found += one.p_value < 0.05 and bool(shift)
    assert claimed / studies == pytest.approx(0.05, abs=0.02)
    assert found / studies > 0.95


@pytest.mark.parametrize("units", [2, 3, 4, 5, 8, 16, 29])
def test_few_units_give_no_more_false_verdicts_than_many(units: int) -> None:
    """As a percentile interval is, it misses a mean of 0 in every second draw of two units, every fifth of four."""
    noise = np.random.default_rng(units).normal(size=(600, units))
    low, high = bootstrap(noise, draws=800)
    assert np.mean((low > 0) | (high < 0)) < 0.09
    assert paired_missed(noise[:60]) <= 8


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_students_t_is_that_of_scipy(level: float) -> None:
    for freedom in range(1, 35):
        assert student_t(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


def paired_missed(noise: np.ndarray) -> int:
    ends = [paired_bootstrap(torch.from_numpy(row), torch.zeros(len(row)), draws=800) for row in noise]
    return sum(found.low > 0 or found.high < 0 for found in ends)


def test_one_window_gives_no_verdict() -> None:
    assert by_window({1: [3.0]}, {1: [3.5]}) is None
    with pytest.raises(UserError, match="one window of text has no interval"):
        paired_bootstrap(torch.ones(1), torch.zeros(1))
