"""Layer skipping: who is compared with whom, and what the intervals carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.capabilities.skipping.question import QUESTION
from layerroute.capabilities.skipping.tables import time_note, time_spread
from layerroute.errors import UserError
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_skipping
from layerroute.lab.pairs import Pair, agreed, deciding
from layerroute.lab.reading import Reading
from layerroute.lab.runs import Run
from layerroute.lab.statistics import Difference, by_window
from layerroute.outcomes import Side, same_cost
from tests.unit.lab.record_factory import record, sites

WINDOWS = 32
TEXT = np.random.default_rng(0).normal(3.0, 0.6, WINDOWS)


def run(
    arm: str, seed: int, *, skip: float, above: float, control: str | None = None, start: str | None = None,
    rate: float = 0.75, dearer: float = 0.0, slower: float = 1.0, noise: float = 0.01,
) -> Run:  # fmt: skip
    draw = np.random.default_rng([seed, *arm.encode()])
    losses = TEXT + above + draw.normal(0, noise) + draw.normal(0, noise, WINDOWS)
    content: dict[str, Any] = record(arm, seed, rates=sites(1 - skip, layer=4), loss=float(losses.mean()))
    content["capability"] = "layer_skipping"
    content["routing"] |= {"control": control, "skipped": skip}
    content["recipe"] |= {
        "start": {"method": "calibrated", "arm": start or control or "token"},
        "skip": {"routing": {"rate": rate}},
    }
    content["validation"] = {"window_losses": losses.tolist()}
    executed = 100 * (1 - skip / 2 + dearer)
    content["flops"] |= {"base_per_token": 100.0, "executed_per_token": executed}
    content["timing"]["evaluation_seconds"] = slower * executed / 10
    return Run(content, Path(f"{arm}-{seed}/record.json"))


def compared(seeds: tuple[int, ...] = (1, 2, 3), *, noise: float = 0.01, better: float = 0.1) -> Comparison:
    runs = []
    for seed in seeds:
        runs += [
            run("token", seed, skip=0.25, above=0.3, noise=noise),
            run("greedy", seed, skip=0.24, above=0.3 + better, start="static_greedy", noise=noise),
            run("random", seed, skip=0.25, above=0.9, control="random", noise=noise),
            run("periodic", seed, skip=0.25, above=0.8, control="periodic", noise=noise),
            run("shallow", seed, skip=0.15, above=0.25, start="static_greedy", rate=0.85, noise=noise),
            run("greedy_40", seed, skip=0.40, above=0.7, start="static_greedy", rate=0.60, noise=noise),
        ]
    return compare_skipping(runs)


def rows(found: Comparison) -> dict[str, dict[str, Any]]:
    table = found.tables["differences"].to_dict()["rows"]
    return {row["Comparison"].removeprefix("token − "): row for row in table}


def gap_to(found: Comparison, rival: str) -> Difference | None:
    return next(pair.difference for pair in found.pairs if pair.rival.label == rival)


def test_a_planted_difference_is_found_at_equal_cost() -> None:
    found = compared()
    assert found.outcome == "wins"
    assert "At equal executed FLOPs it beats greedy (−0.089 nats, 95% −0." in found.verdict
    assert {arm.label: [one.how for one in entries] for arm, entries in found.judged} == {
        label: ["neither: equal cost"] for label in ("greedy", "random", "periodic")
    }
    assert rows(found)["shallow"]["The first"] == "no verdict: unequal FLOPs"


@pytest.mark.parametrize(
    ("dearer", "equal"), [(0.005, True), (0.0051, False), (-0.005, True), (-0.0051, False)]
)
def test_equal_cost_is_half_a_point_of_share(dearer: float, equal: bool) -> None:
    found = compare_skipping(
        [
            run("token", 1, skip=0.25, above=0.3, dearer=dearer),
            run("greedy", 1, skip=0.25, above=0.4, start="static_greedy"),
        ]
    )
    said = rows(found)["greedy"]["The first"]
    assert said == ("wins" if equal else "no verdict: unequal FLOPs")
    assert ("it beats greedy" in found.verdict) is equal
    assert ("No verdict against greedy (" in found.verdict) is not equal
    assert same_cost(0.5, 0.5 + dearer) is equal and not same_cost(0.5, None)


def timed(seeds: tuple[int, ...] = (1, 2), busy: float = 1.0) -> Comparison:
    """Routing that gathers tokens slowly: a static arm that skips less takes its time."""
    runs = []
    for seed in seeds:
        runs += [
            run("token", seed, skip=0.25, above=0.3, slower=1.06),
            run(
                "greedy", seed, skip=0.25, above=0.4, start="static_greedy", slower=busy if seed == 2 else 1.0
            ),
            run("shallow", seed, skip=0.15, above=0.25, start="static_greedy", rate=0.85),
        ]
    return compare_skipping(runs)


def test_equal_time_is_shown_and_is_no_equal_cost() -> None:
    found = timed()
    assert time_spread(found) == pytest.approx(1.0)
    table = rows(found)
    assert table["shallow"]["Its time"] == pytest.approx(0.925 / 0.875 / 1.06)
    assert table["shallow"]["The first"] == "no verdict: unequal FLOPs"
    assert table["greedy"]["The first"] == "wins"
    assert table["greedy"]["Its time"] == pytest.approx(1 / 1.06)


def test_times_of_a_busy_machine_are_not_compared() -> None:
    """One seed of one arm took 1.6 times as long as the other: the machine did something else."""
    found = timed(busy=1.6)
    assert time_spread(found) == pytest.approx(1.6)
    assert {row["Its time"] for row in rows(found).values()} == {"–"}
    notes = " ".join(found.tables["differences"].notes)
    assert "the machine was busy with other work" in notes and "1.60× apart" in notes


def test_times_that_nothing_can_judge_are_not_compared() -> None:
    found = compare_skipping(
        [run("token", 1, skip=0.25, above=0.3), run("r", 1, skip=0.25, above=0.9, control="random")]
    )
    assert time_spread(found) is None
    assert "no two runs of one machine did equal work" in time_note(found)


def test_static_arms_of_other_skips_are_equal_work_for_each_flop() -> None:
    runs = [
        run("token", 1, skip=0.25, above=0.3),
        run("greedy", 1, skip=0.25, above=0.4, start="static_greedy"),
        run("shallow", 1, skip=0.15, above=0.25, start="static_greedy", rate=0.85, slower=1.3),
    ]
    assert time_spread(compare_skipping(runs)) == pytest.approx(1.3)


def test_no_difference_comes_with_what_would_have_been_found() -> None:
    found = compared(better=0.0, noise=0.05)
    gap = gap_to(found, "greedy")
    assert gap is not None and rows(found)["greedy"]["The first"] == "cannot be told"
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
    gap = by_window(one.window_losses, other.window_losses)
    assert gap is not None and len(gap.seeds) == 3
    assert gap.low is not None and gap.high is not None and gap.low < 0 < gap.high


def test_one_seed_says_that_it_is_one() -> None:
    found = compared(seeds=(1,))
    gap = gap_to(found, "greedy")
    assert gap is not None and len(gap.seeds) == 1 and gap.low is not None and gap.high is not None
    assert gap.low < gap.mean < gap.high
    assert "One seed: the intervals are over text" in found.verdict


def test_only_comparisons_on_one_seed_are_said_to_be_on_one() -> None:
    runs = [run("token", seed, skip=0.25, above=0.3) for seed in (1, 2, 3)]
    runs += [run("greedy", seed, skip=0.25, above=0.4, start="static_greedy") for seed in (1, 2, 3)]
    runs += [run("random", 1, skip=0.25, above=0.9, control="random")]
    assert "One seed against random: the intervals" in compare_skipping(runs).verdict
    assert "One seed" not in compare_skipping(runs[:-1]).verdict


def test_controls_that_are_not_there_are_named() -> None:
    kept = [run("token", 1, skip=0.25, above=0.3), run("random", 1, skip=0.25, above=0.9, control="random")]
    found = compare_skipping(kept)
    assert found.missing == ["periodic", "static prune"] and found.outcome is None


def priced(token: float, greedy: float, deep: float) -> Comparison:
    """Routing that executes more than static arms of its skip: losses at 25 % and, of static arms, at 40 %."""
    runs = [
        run("token", 1, skip=0.25, above=token, dearer=0.02, noise=0.001),
        run("token_40", 1, skip=0.40, above=token + 0.3, rate=0.6, dearer=0.02, noise=0.001),
        run("greedy", 1, skip=0.25, above=greedy, start="static_greedy", noise=0.001),
        run("greedy_15", 1, skip=0.15, above=greedy - 0.15, start="static_greedy", rate=0.85, noise=0.001),
        run("greedy_40", 1, skip=0.40, above=deep, start="static_greedy", rate=0.6, noise=0.001),
    ]
    return compare_skipping(runs)


def costs(found: Comparison) -> dict[tuple[str, str, str], dict[str, Any]]:
    table = found.tables["equal_cost"].to_dict()["rows"]
    return {(row["Router"], row["Against"], row["Read off"].partition(",")[0]): row for row in table}


def test_at_equal_flops_one_is_read_off_at_the_others_cost() -> None:
    found = costs(priced(token=0.40, greedy=0.43, deep=0.75))
    # 87.5 % lies 5.5 / 7.5 of the way from token_40 (82 %, 0.70) to token (89.5 %, 0.40): 0.48.
    row = found["token", "greedy", "routing"]
    assert (
        row["Δ val loss"] == pytest.approx(0.48 - 0.43, abs=0.003) and row["The router"] == "loses, as read"
    )
    assert row["At FLOPs"] == pytest.approx(0.875)
    # 89.5 % lies 2 / 5 of the way from greedy (87.5 %, 0.43) to greedy_15 (92.5 %, 0.28): 0.37.
    row = found["token", "greedy", "the rival"]
    assert row["Δ val loss"] == pytest.approx(0.40 - 0.37, abs=0.003) and row["The router"] == "loses"
    assert ("token", "greedy_40", "routing") not in found, "nothing is extrapolated"
    row = found["token_40", "greedy", "the rival"]
    assert row["Δ val loss"] == pytest.approx(0.70 - (0.75 - 0.32 * 2 / 7.5), abs=0.003)


def test_what_is_ahead_at_equal_skip_may_lose_at_equal_flops_and_only_that_is_said() -> None:
    found = priced(token=0.40, greedy=0.43, deep=0.75)
    # Two readings say so, and the one that flatters nobody is told.
    assert "it loses to greedy (+0.03" in found.verdict and "beats" not in found.verdict
    assert "read off the rival, between greedy and greedy_15, 40% of the way)" in found.verdict
    assert "it beats greedy (−0." in priced(token=0.30, greedy=0.43, deep=0.75).verdict
    # Behind where routing is read off, ahead where the control is: the line decides, and so nothing does.
    doubtful = priced(token=0.36, greedy=0.43, deep=0.75).verdict
    assert "it cannot be told from greedy (+0.01" in doubtful
    assert "the straight line there may have made the difference" in doubtful


def test_arms_that_cost_the_same_are_compared_as_they_are() -> None:
    runs = [
        run("token", 1, skip=0.25, above=0.3),
        run("greedy", 1, skip=0.25, above=0.35, start="static_greedy"),
    ]
    table = costs(compare_skipping(runs))
    assert list(table) == [("token", "greedy", "neither: equal cost")]
    assert table["token", "greedy", "neither: equal cost"]["Δ val loss"] == pytest.approx(-0.05, abs=0.03)


def test_stochastic_depth_is_not_called_not_causal() -> None:
    """Records of earlier versions say of its granularity that it is not; random by the batch is."""
    runs = [run("token", 1, skip=0.25, above=0.3)]
    for name in ("stochastic", "random"):
        runs.append(run(name, 1, skip=0.0, above=0.3, control=name))
        runs[-1].record["routing"]["causal"] = False
    assert compare_skipping(runs).verdict.endswith(
        "Decisions of random are not causal: they may see later tokens."
    )


def test_the_subject_is_a_causal_router_with_controls_and_not_the_first_by_name() -> None:
    runs = [
        run("reinforce", 1, skip=0.25, above=0.1),
        run("a_variant", 1, skip=0.10, above=0.2, rate=0.9),
        run("token_longer", 1, skip=0.25, above=0.3),
        run("greedy", 1, skip=0.25, above=0.4, start="static_greedy"),
    ]
    runs[0].record["routing"]["causal"] = False
    found = compare_skipping(runs)
    assert found.subject is not None and found.subject.label == "token_longer"
    assert "causal first, then most controls at equal cost" in found.notes[-1]
    asked = compare_skipping(runs, subject="reinforce")
    assert asked.subject is not None and asked.subject.label == "reinforce" and "as asked" in asked.notes[-1]
    with pytest.raises(UserError, match=r"no routed arm 'greedy'"):
        compare_skipping(runs, subject="greedy")


def test_the_baseline_is_what_the_others_are_held_against() -> None:
    runs = [
        run("full", 1, skip=0.0, above=0.0, control="static"),
        run("token", 1, skip=0.25, above=0.3),
        run("greedy", 1, skip=0.25, above=0.4, start="static_greedy"),
    ]
    runs[0].record["recipe"]["start"]["method"] = "fresh"
    found = compare_skipping(runs, baseline="greedy")
    assert found.subject is not None and found.subject.label == "token"
    table = found.tables["differences"].to_dict()["rows"]
    assert [row["Comparison"] for row in table] == ["full − greedy", "token − greedy"]
    assert table[1]["Δ val loss"] == pytest.approx(-0.1, abs=0.03) and table[1]["The first"] == "wins"
    assert "it beats greedy" in found.verdict
    against_full = compare_skipping(runs, baseline="full")
    assert "No verdict against full (87.5% against 100.0% of" in against_full.verdict
    assert "beats" not in against_full.verdict
    with pytest.raises(UserError, match=r"no arm 'gredy'.*'greedy'"):
        compare_skipping(runs, baseline="gredy")


@pytest.mark.parametrize(
    ("seed", "windows", "why"),
    [
        (2, WINDOWS, "no seed in common (1 against 2)"),
        (1, WINDOWS // 2, "not the same windows of text (32 against 16)"),
        (1, 0, "no losses by window of random"),
    ],
)
def test_arms_that_cannot_be_paired_say_why(seed: int, windows: int, why: str) -> None:
    random = run("random", seed, skip=0.25, above=0.9, control="random")
    random.record["validation"]["window_losses"] = random.record["validation"]["window_losses"][:windows]
    found = compare_skipping([run("token", 1, skip=0.25, above=0.3), random])
    assert rows(found)["random"]["The first"] == f"cannot be paired: {why}"
    assert f"cannot be paired with random ({why})" in found.verdict


def test_cost_is_that_of_the_seeds_that_are_compared() -> None:
    """On average the router costs what greedy pruning does; where both have a seed it costs more."""
    runs = [run("token", seed, skip=0.40, above=0.5) for seed in (1, 2, 3)]
    runs += [run("token", seed, skip=0.14, above=0.2) for seed in (4, 5, 6)]
    runs += [run("greedy", seed, skip=0.27, above=0.3, start="static_greedy") for seed in (4, 5, 6)]
    found = compare_skipping(runs, subject="token")
    assert [entries for _, entries in found.judged] == [[]]
    assert "No verdict against greedy" in found.verdict
    alike = [one for one in runs if one.seed > 3 or one.arm == "greedy"]
    alike += [run("greedy", seed, skip=0.40, above=0.6, start="static_greedy") for seed in (1, 2)]
    assert [entries for _, entries in compare_skipping(alike, subject="token").judged] == [[]]


def read(side: Side | None, mean: float, half: float) -> Pair:
    """Routing less a control, one of them read off or neither."""
    low, high = Arm(label="low", runs=()), Arm(label="high", runs=())
    return Pair(
        question=QUESTION,
        subject=Arm(label="token", runs=()),
        rival=Arm(label="greedy", runs=()),
        difference=Difference(seeds=(1,), by_seed=(mean,), mean=mean, low=mean - half, high=mean + half),
        reading=side and Reading(side=side, low=low, high=high, weight=0.5),
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("routing", "control", "together", "told"),
    [
        ((-0.05, 0.01), (-0.09, 0.01), "wins", "routing"),
        ((0.09, 0.01), (0.05, 0.01), "loses", "control"),
        ((-0.05, 0.01), (-0.01, 0.02), "cannot be told", "control"),
        ((0.01, 0.02), (0.05, 0.01), "cannot be told", "routing"),
        ((-0.05, 0.01), (0.05, 0.01), "cannot be told", None),
    ],
)
def test_only_what_both_readings_bear_out_is_said_and_its_numbers_are_told(
    routing: tuple[float, float],
    control: tuple[float, float],
    together: str,
    told: str | None,
    order: tuple[int, int],
) -> None:
    both = {"routing": read("subject", *routing), "control": read("rival", *control)}
    entries = [list(both.values())[place] for place in order]
    assert agreed(entries) == together
    if told is not None:
        assert deciding(entries) is both[told]
    else:
        assert all(one.outcome.certain for one in entries), "they contradict each other"


@pytest.mark.parametrize(("rate", "kind"), [(1.0, "full depth"), (0.75, "static prune")])
def test_a_static_arm_is_what_it_was_asked_to_be_until_a_run_of_it_completes(rate: float, kind: str) -> None:
    one = run("static", 1, skip=1 - rate, above=0.2, control="static", rate=rate)
    one.record["recipe"]["start"]["method"] = "fresh"
    assert str(QUESTION.kind_of(Arm("static", (one,)))) == kind
    one.record["status"] = "failed"
    del one.record["routing"]["skipped"]
    assert str(QUESTION.kind_of(Arm("static", (one,)))) == kind
