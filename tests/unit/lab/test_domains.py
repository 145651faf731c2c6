"""Rates by kind of text: a planted difference is found, and none is claimed where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from layerroute.lab.domains import compare_domains


def rates(share: float, *, windows: int = 20, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(share, 0.05, (windows, 2)), 0, 1)


def test_a_planted_difference_is_found() -> None:
    given = {"prose": rates(0.3), "code": rates(0.5, seed=1)}
    found = compare_domains(given, {"prose": [3.0] * 20, "code": [1.0] * 20}, ["a", "b"], "run")
    assert found.p_value is not None and found.p_value < 0.01
    prose, code = found.domains
    assert prose.low is not None and prose.high is not None and code.low is not None
    assert prose.low < prose.rate < prose.high < code.low
    assert code.sites["b"] == pytest.approx(given["code"][:, 1].mean())
    assert "p <0.001" in found.table.notes[0]


def test_chance_alone_is_rarely_called_a_difference() -> None:
    claims = 0
    for seed in range(12):
        given = {"prose": rates(0.4, seed=2 * seed), "code": rates(0.4, seed=2 * seed + 1)}
        found = compare_domains(given, {"prose": [1.0], "code": [1.0]}, ["a", "b"], "run")
        claims += found.p_value is not None and found.p_value < 0.05
    assert claims <= 2


def test_two_windows_are_too_few_for_an_interval() -> None:
    found = compare_domains({"prose": rates(0.4, windows=2)}, {"prose": [1.0]}, ["a", "b"], "run")
    assert found.p_value is None and found.domains[0].low is None
