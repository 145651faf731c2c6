"""The test over seeds and windows: its arithmetic, and what it does in a thousand studies whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from layerroute.capabilities.attention.question import QUESTION
from layerroute.lab.arms import Arm
from layerroute.lab.pairs import judge
from layerroute.lab.runs import Run
from layerroute.lab.statistics import by_seed_and_window, crossed_test, effect_in_errors
from layerroute.outcomes import Outcome
from tests.unit.lab.record_factory import record

STUDIES, WINDOWS = 1000, 64
# Standard deviations of differences between two arms, in nats: by seed, by window, and of their meeting.
SPREADS = {
    "seeds matter": (0.05, 0.02, 0.02),
    "windows matter": (0.005, 0.1, 0.05),
    "both matter": (0.02, 0.1, 0.05),
    "windows do not": (0.02, 0.0, 0.05),
}


def studies(name: str, seeds: int, effect: float) -> np.ndarray:
    """Studies as runs behave, all normal about a true difference that we choose: (studies, seeds, windows)."""
    generator, (seed, window, rest) = np.random.default_rng(0), SPREADS[name]
    return (
        effect
        + seed * generator.standard_normal((STUDIES, seeds, 1))
        + window * generator.standard_normal((STUDIES, 1, WINDOWS))
        + rest * generator.standard_normal((STUDIES, seeds, WINDOWS))
    )


def claims(name: str, seeds: int, effect: float) -> float:
    """The share of studies in which a difference is claimed at the 5 % level."""
    return float((crossed_test(studies(name, seeds, effect))[2] < 0.05).mean())


def planted(name: str, seeds: int) -> float:
    """The true difference that the test finds with 80 % power, if this were the spread."""
    seed, window, rest = SPREADS[name]
    one = (seed**2 + rest**2 / WINDOWS) / seeds
    other = (window**2 + rest**2 / seeds) / WINDOWS
    freedom = (one + other) ** 2 / (one**2 / (seeds - 1) + other**2 / (WINDOWS - 1))
    crossed = math.sqrt(one + other) * effect_in_errors(math.floor(freedom))
    return max(crossed, math.sqrt(one) * effect_in_errors(seeds - 1))


def bound(rate: float) -> float:
    """Three standard errors of a share over the studies."""
    return 3 * math.sqrt(rate * (1 - rate) / STUDIES)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("name", SPREADS)
def test_null_effects_are_not_claimed_and_planted_ones_are_found(name: str, seeds: int) -> None:
    assert claims(name, seeds, 0.0) <= 0.05 + bound(0.05)
    effect = planted(name, seeds)
    # Asked for 80 %; two tests that must both agree, and estimated degrees of freedom, make it 76 to 86 %.
    assert claims(name, seeds, effect) >= 0.75
    assert claims(name, seeds, effect / 4) < 0.4, (
        "an effect far below the detectable one is mostly not found: the bound says something"
    )


def test_a_test_over_one_of_them_alone_claims_what_is_not_there() -> None:
    over_seeds = stats.ttest_1samp(studies("windows matter", 3, 0.0).mean(axis=2), 0.0, axis=-1).pvalue
    assert (over_seeds < 0.05).mean() > 0.15
    over_windows = stats.ttest_1samp(studies("seeds matter", 3, 0.0).mean(axis=1), 0.0, axis=-1).pvalue
    assert (over_windows < 0.05).mean() > 0.5


def test_without_a_difference_between_windows_it_is_the_paired_t_test() -> None:
    by_seed = np.array([0.10, 0.14, 0.05, 0.12])
    mean, half_width, p_value, _ = crossed_test(np.repeat(by_seed[:, None], 16, axis=1))
    expected = stats.ttest_1samp(by_seed, 0.0)
    assert float(p_value) == pytest.approx(expected.pvalue)
    low, _ = expected.confidence_interval(0.95)
    assert float(mean - half_width) == pytest.approx(low)


def test_it_is_never_surer_than_the_test_over_seeds() -> None:
    generator = np.random.default_rng(1)
    differences = (
        0.03 + 0.02 * generator.standard_normal((200, 3, 1)) + generator.standard_normal((200, 3, 32)) / 20
    )
    alone = stats.ttest_1samp(differences.mean(axis=2), 0.0, axis=1).pvalue
    assert (crossed_test(differences)[2] >= alone - 1e-12).all()


def test_no_difference_at_all_is_no_difference() -> None:
    assert [float(value) for value in crossed_test(np.zeros((3, 8)))] == [0.0, 0.0, 1.0, 0.0]


def test_what_does_not_pair_is_not_paired() -> None:
    windows = [1.0] * 8
    assert by_seed_and_window({1: windows}, {1: windows}) is None
    assert by_seed_and_window({1: windows, 2: windows}, {1: windows, 2: windows[:7]}) is None
    assert by_seed_and_window({1: [1.0] * 7, 2: [1.0] * 7}, {1: [1.0] * 7, 2: [1.0] * 7}) is None
    with pytest.raises(ValueError, match="two seeds"):
        crossed_test(np.zeros((1, 8)))


def test_a_verdict_is_paired_by_windows_where_records_have_them() -> None:
    generator = np.random.default_rng(0)
    text = 4.0 + generator.standard_normal(32)
    arms = []
    for name, shift in (("one", 0.0), ("other", 0.2)):
        runs = []
        for seed in (1, 2, 3):
            windows = text + shift + 0.01 * generator.standard_normal(32)
            runs.append(
                record(name, seed, loss=float(windows.mean()), validation={"window_losses": windows.tolist()})
            )
        arms.append(Arm(name, tuple(Run(run, Path(run["run"])) for run in runs)))
    (pair,) = judge(QUESTION, [(arms[0], arms[1], ())], primary=True)
    assert pair.outcome is Outcome.WINS
    assert pair.difference is not None and pair.difference.windows == 32
    assert pair.difference.mean == pytest.approx(-0.2, abs=0.01)
    assert "paired, and by 32 windows of text" in pair.sentence
