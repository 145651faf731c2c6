import math

import numpy as np
import pytest
from scipy import stats

from layerroute.lab.statistics import (
    holm,
    minimal_detectable_effect,
    paired_difference,
    t_interval,
)


def test_interval_is_student_t() -> None:
    values = [4.1, 4.2, 4.4]
    found = t_interval(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.n == 3


def test_one_value_has_no_interval() -> None:
    found = t_interval([4.1])
    assert found is not None
    assert found.half_width is None
    assert (found.low, found.high) == (4.1, 4.1)
    assert t_interval([]) is None


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        t_interval([1.0, math.nan])


def test_paired_difference_uses_common_seeds_only() -> None:
    found = paired_difference({42: 4.0, 43: 4.1, 44: 9.9}, {42: 4.1, 43: 4.3, 45: 0.0})
    assert found.seeds == (42, 43)
    assert found.differences == pytest.approx((-0.1, -0.2))
    expected = stats.ttest_rel([4.0, 4.1], [4.1, 4.3]).pvalue
    assert found.p_value == pytest.approx(expected)


def test_pairing_removes_what_seeds_share() -> None:
    ours = {seed: seed + 0.1 + 0.001 * (seed % 2) for seed in range(5)}
    theirs = {seed: float(seed) for seed in range(5)}
    found = paired_difference(ours, theirs)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert stats.ttest_ind(list(ours.values()), list(theirs.values())).pvalue > 0.5


@pytest.mark.parametrize("seeds", [(), (42,)])
def test_fewer_than_two_pairs_carry_no_test(seeds: tuple[int, ...]) -> None:
    found = paired_difference(dict.fromkeys(seeds, 4.0), dict.fromkeys(seeds, 4.1))
    assert found.p_value is None
    assert found.detectable is None
    assert (found.estimate is None) == (not seeds)


def test_equal_differences() -> None:
    same = paired_difference({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0})
    assert same.p_value == 1.0
    assert paired_difference({1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0}).p_value == 0.0


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
        p = paired_difference(dict(enumerate(base + noise)), theirs).p_value
        q = paired_difference(dict(enumerate(base + noise - 0.03)), theirs).p_value
        assert p is not None
        assert q is not None
        claimed += p < 0.05
        found += q < 0.05
    assert claimed / studies == pytest.approx(0.05, abs=0.02)
    assert found / studies > 0.95
