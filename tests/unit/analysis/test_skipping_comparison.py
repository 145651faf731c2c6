"""Layer skipping: who is compared with whom, and what the intervals carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.analysis.runs import Run
from layerroute.analysis.skipping import SkippingComparison, compare_skipping, paired_gap
from tests.unit.analysis.record_factory import record, sites

WINDOWS = 32
TEXT = np.random.default_rng(0).normal(3.0, 0.6, WINDOWS)


def run(
    arm: str, seed: int, *, skip: float, above: float, control: str | None = None, start: str | None = None,
    seconds: float = 10.0, noise: float = 0.01,
) -> Run:  # fmt: skip
    draw = np.random.default_rng([seed, *arm.encode()])
    losses = TEXT + above + draw.normal(0, noise) + draw.normal(0, noise, WINDOWS)
    content: dict[str, Any] = record(arm, seed, rates=sites(1 - skip, layer=4), loss=float(losses.mean()))
    content["capability"] = "layer_skipping"
    content["routing"] |= {"control": control, "skipped": skip}
    content["recipe"] |= {"start": {"method": "calibrated", "arm": start or "token"}, "skip": {}}
    content["validation"] = {"window_losses": losses.tolist()}
    content["timing"]["evaluation_seconds"] = seconds
    return Run(content, Path(f"{arm}-{seed}/record.json"))


def compared(
    seeds: tuple[int, ...] = (1, 2, 3), *, noise: float = 0.01, better: float = 0.1
) -> SkippingComparison:
    runs = []
    for seed in seeds:
        runs += [
            run("token", seed, skip=0.25, above=0.3, noise=noise),
            run(
                "greedy", seed, skip=0.24, above=0.3 + better, start="static_greedy", noise=noise, seconds=8.0
            ),
            run("random", seed, skip=0.25, above=0.9, control="random", noise=noise),
            run("periodic", seed, skip=0.25, above=0.8, control="periodic", noise=noise),
            run("shallow", seed, skip=0.15, above=0.25, start="static_greedy", noise=noise, seconds=10.2),
        ]
    return compare_skipping(runs)


def rows(found: SkippingComparison) -> dict[str, dict[str, Any]]:
    return {row["Against"]: row for row in found.tables["differences"].to_dict()["rows"]}


def test_a_planted_difference_is_found_at_equal_skip() -> None:
    found = compared()
    assert found.outcome == "wins"
    assert "beats greedy (−0.089 nats, 95% −0." in found.verdict
    assert {arm.label for arm in found.rivals()} == {"greedy", "random", "periodic"}
    assert rows(found)["greedy"]["Equal in"] == "skip"


def test_equal_time_is_another_comparison_than_equal_skip() -> None:
    found = compared()
    assert {arm.label for arm in found.as_fast()} == {"shallow", "random", "periodic"}
    table = rows(found)
    assert table["shallow"]["Equal in"] == "time" and table["shallow"]["Routing"] == "loses"
    assert table["random"]["Equal in"] == "skip and time"
    assert table["greedy"]["Its time"] == pytest.approx(0.8)


def test_no_difference_comes_with_what_would_have_been_found() -> None:
    found = compared(better=0.0, noise=0.05)
    gap = found.gaps["greedy"]
    assert gap is not None and gap.outcome == "cannot be told"
    assert gap.detectable is not None and gap.detectable > abs(gap.mean)
    assert "would go unseen" in found.verdict and found.outcome == "cannot be told"


def test_seeds_that_disagree_widen_the_interval_and_windows_cannot_make_up_for_them() -> None:
    """The bootstrap over both, which stood here before, took three seeds for all seeds."""
    runs = [
        run(arm, seed, skip=0.25, above=above[seed], noise=0.001)
        for arm, above in (("token", {1: 0.2, 2: 0.3, 3: 0.25}), ("other", {1: 0.3, 2: 0.31, 3: 0.3}))
        for seed in (1, 2, 3)
    ]
    one, other = (compare_skipping([r for r in runs if r.arm == name]).arms[0] for name in ("token", "other"))
    gap = paired_gap(one, other)
    assert gap is not None and gap.seeds == 3
    assert gap.low < 0 < gap.high


def test_one_seed_says_that_it_is_one() -> None:
    found = compared(seeds=(1,))
    gap = found.gaps["greedy"]
    assert gap is not None and gap.seeds == 1 and gap.low < gap.mean < gap.high
    assert "One seed: the intervals are over text" in found.verdict


def test_controls_that_are_not_there_are_named() -> None:
    kept = [run("token", 1, skip=0.25, above=0.3), run("random", 1, skip=0.25, above=0.9, control="random")]
    found = compare_skipping(kept)
    assert found.missing == ["periodic", "static prune"] and found.outcome is None
