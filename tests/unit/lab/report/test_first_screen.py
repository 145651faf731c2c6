"""The three sentences at the head of a report: what each says in every state that records can be in."""

from __future__ import annotations

import re
from typing import Any

import pytest

from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.first_screen import first_screen
from tests.unit.lab.record_factory import sites
from tests.unit.lab.report.test_speed import record as bench_record
from tests.unit.lab.report.test_speed import skipping
from tests.unit.lab.report.test_words import RATES, SEEDS, runs
from tests.unit.lab.test_skipping_comparison import compared, priced
from tests.unit.lab.test_skipping_comparison import run as skipping_run


def said(found: Comparison, *bench: dict[str, Any]) -> tuple[str, str, str]:
    (_, faster), (_, good), (_, trusted) = first_screen(found, bench)
    for sentence in (faster, good, trusted):
        assert sentence.endswith(".") and ".." not in sentence and "  " not in sentence
    return faster, good, trusted


def routed(loss: float, *seeds: int, **settings: Any) -> Comparison:
    """A learned router against a static arm of loss 4.1."""
    others = runs("baseline", 4.1, *seeds) + runs("random", 4.3, *seeds, control="random", **RATES)
    return compare_runs(others + runs("dynamic", loss, *seeds, **{**RATES, **settings}))


@pytest.mark.parametrize(
    ("found", "good", "trusted"),
    [
        (compared(), "At equal FLOPs it is better than each of 3 controls (nearest: greedy, −0.089", "Yes, for this"),
        (compared(seeds=(1,)), "better than each of 3", "Only in part: fewer than 3 seeds of token, greedy, "),
        (compared(better=-0.3), "it loses to greedy (worst: greedy, +0.", "Yes, for this model and this text: 3 seeds"),
        (compared(better=0.001), "it cannot be told from greedy (nearest: greedy, ", "Yes, for this"),
        (priced(0.40, 0.43, 0.75), "it loses to greedy", "There is no verdict to trust yet: fewer than 3 seeds"),
        (routed(4.0, *SEEDS), "Yes: dynamic has a lower validation loss than baseline", "has 7.0% more parameters."),
        (routed(4.2, *SEEDS), "No: dynamic has a higher validation loss than baseline", "Only in part: "),
        (routed(4.1, *SEEDS), "No difference from baseline is seen in validation loss (", "Only in part: "),
        (routed(4.0, 42), "Cannot be told: with one seed, dynamic ends 0.1", "There is no verdict to trust yet: fewer"),
        (routed(4.0, *SEEDS, executed=3.5e6), "Not measured: dynamic and baseline do not cost the same", "no verdict"),
        (routed(4.0, *SEEDS, learning_rate=9e-3), "were not treated alike (learning rate", "no verdict to trust"),
        (routed(4.0, *SEEDS, status="failed"), "Not measured: no routed run completed.", "nothing to trust yet"),
    ],
)  # fmt: skip
def test_what_is_said_is_what_the_records_carry(found: Comparison, good: str, trusted: str) -> None:
    _, second, third = said(found)
    assert good in second
    assert trusted in third


@pytest.mark.parametrize(
    ("above", "price"),
    [
        (0.3, r"Worse than full_depth by 0\.3\d+ nats \(95% \+0\.[23]\d+ to \+0\.3\d+\)"),
        (-0.3, r"Better than full_depth by 0\.\d+ nats \(95% −0\.3\d+ to −0\.[23]\d+\)"),
        (0.0, r"Cannot be told from full_depth \(95% −0\.\d+ to \+0\.\d+\)"),
    ],
)
def test_the_price_against_the_full_model_comes_first_with_its_interval(above: float, price: str) -> None:
    arms = [skipping_run("token", seed, skip=0.25, above=above) for seed in SEEDS]
    arms += [skipping_run("greedy", seed, skip=0.25, above=0.4, start="static_greedy") for seed in SEEDS]
    full = [skipping_run("full_depth", seed, skip=0.0, above=0.0, control="static") for seed in SEEDS]
    for one in full:
        one.record["recipe"]["start"]["method"] = "fresh"
    good = said(compare_runs(arms + full))[1]
    assert re.match(price + "; at equal FLOPs it is better than the one", good), good


def test_price_and_seeds_are_those_that_both_arms_have() -> None:
    """A seed that only one of them has run says nothing of their difference."""
    arms = [skipping_run("token", seed, skip=0.25, above=0.3) for seed in SEEDS]
    arms += [
        skipping_run("greedy", seed, skip=0.25, above=0.4, start="static_greedy")
        for seed in (*SEEDS[:2], 8, 9)
    ]
    full = [skipping_run("full_depth", seed, skip=0.0, above=0.0, control="static") for seed in SEEDS]
    full.append(skipping_run("full_depth", 9, skip=0.0, above=5.0, control="static"))
    for one in full:
        one.record["recipe"]["start"]["method"] = "fresh"
    _, good, trusted = said(compare_runs(arms + full))
    assert good.startswith("Worse than full_depth by 0.3")
    assert "fewer than 3 seeds of greedy" in trusted


def test_speed_is_not_told_from_flops() -> None:
    assert said(compared())[0].startswith(
        "Not measured: token executes 87.5% of the plain model's FLOPs, but"
    )
    text = said(routed(4.0, *SEEDS, executed=2.1e6))[0]
    assert text.startswith("Not measured: dynamic executes 25.0% fewer FLOPs per token than baseline")
    nothing = said(compare_runs(runs("dynamic", 4.0, *SEEDS, executed=None, rates=sites(0.5))))[0]
    assert "neither paired timings nor executed FLOPs" in nothing


@pytest.mark.parametrize(("speed", "verdict"), [(1.5, "Yes"), (1.0, "In part"), (0.5, "No")])
def test_timings_are_read_at_the_share_that_is_skipped(speed: float, verdict: str) -> None:
    rows = [skipping(0.25, speed, 0.9), skipping(0.75, 2 * speed, 0.9)]
    text = said(compared(), bench_record("prefill", rows))[0]
    assert text.startswith(f"{verdict}, in the timings given")
    assert f"{speed:.2f}× ({0.9 * speed:.2f} to {1.1 * speed:.2f})" in text and "at 25% skipped" in text
