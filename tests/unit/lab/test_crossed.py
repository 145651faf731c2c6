"""The test over seeds and windows: its arithmetic, and what it does in a thousand studies whose truth is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from layerroute.lab.arms import Arm
from layerroute.lab.crossed import crossed_difference, crossed_test
from layerroute.lab.runs import Run
from layerroute.lab.simulation import Spread, planted_effect, simulate_studies
from layerroute.lab.verdict import Outcome, judge_pairs
from tests.unit.lab.record_factory import record

STUDIES = 1000
SPREADS = {
    "seeds matter": Spread(seed=0.05, document=0.02, rest=0.02),
    "documents matter": Spread(seed=0.005, document=0.1, rest=0.05),
    "both matter": Spread(seed=0.02, document=0.1, rest=0.05),
    "documents do not": Spread(seed=0.02, document=0.0, rest=0.05),
}


def bound(rate: float) -> float:
    """Three standard errors of a share over the studies."""
    return 3 * math.sqrt(rate * (1 - rate) / STUDIES)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("name", SPREADS)
def test_null_effects_are_not_claimed_and_planted_ones_are_found(name: str, seeds: int) -> None:
    spread, sizes = SPREADS[name], {"seeds": seeds, "documents": 64}
    null = simulate_studies(STUDIES, **sizes, spread=spread, effect=0.0)
    assert null.crossed <= 0.05 + bound(0.05)
    effect = planted_effect(spread, **sizes)
    found = simulate_studies(STUDIES, **sizes, spread=spread, effect=effect)
    # Asked for 80 %; two tests that must both agree, and estimated degrees of freedom, make it 76 to 86 %.
    assert found.crossed >= 0.75
    weaker = simulate_studies(STUDIES, **sizes, spread=spread, effect=effect / 4)
    assert weaker.crossed < 0.4, (
        "an effect far below the detectable one is mostly not found: the bound says something"
    )


def test_a_test_over_one_of_them_alone_claims_what_is_not_there() -> None:
    by_document = simulate_studies(
        STUDIES, seeds=3, documents=64, spread=SPREADS["documents matter"], effect=0.0
    )
    assert by_document.seeds_alone > 0.15
    by_seed = simulate_studies(STUDIES, seeds=3, documents=64, spread=SPREADS["seeds matter"], effect=0.0)
    assert by_seed.documents_alone > 0.5


def test_without_a_difference_between_windows_it_is_the_paired_t_test() -> None:
    by_seed = np.array([0.10, 0.14, 0.05, 0.12])
    found = crossed_test(np.repeat(by_seed[:, None], 16, axis=1))
    expected = stats.ttest_1samp(by_seed, 0.0)
    assert float(found.p_value) == pytest.approx(expected.pvalue)
    low, _ = expected.confidence_interval(0.95)
    assert float(found.mean - found.half_width) == pytest.approx(low)


def test_it_is_never_surer_than_the_test_over_seeds() -> None:
    generator = np.random.default_rng(1)
    differences = (
        0.03 + 0.02 * generator.standard_normal((200, 3, 1)) + generator.standard_normal((200, 3, 32)) / 20
    )
    alone = stats.ttest_1samp(differences.mean(axis=2), 0.0, axis=1).pvalue
    assert (crossed_test(differences).p_value >= alone - 1e-12).all()


def test_no_difference_at_all_is_no_difference() -> None:
    found = crossed_test(np.zeros((3, 8)))
    assert (float(found.p_value), float(found.half_width), float(found.detectable)) == (1.0, 0.0, 0.0)


def test_what_does_not_pair_is_not_paired() -> None:
    windows = [1.0] * 8
    assert crossed_difference({1: windows}, {1: windows}) is None
    assert crossed_difference({1: windows, 2: windows}, {1: windows, 2: windows[:7]}) is None
    assert crossed_difference({1: [1.0] * 7, 2: [1.0] * 7}, {1: [1.0] * 7, 2: [1.0] * 7}) is None
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
    (pair,) = judge_pairs((arms[0], arms[1]), [])
    assert pair.outcome is Outcome.WINS
    assert pair.difference.documents == 32
    assert pair.difference.estimate is not None and pair.difference.estimate.mean == pytest.approx(
        -0.2, abs=0.01
    )
    assert "paired, and by 32 windows of text" in pair.sentence()
