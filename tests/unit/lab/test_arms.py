from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention import kinds
from layerroute.capabilities.attention.question import QUESTION
from layerroute.capabilities.attention.routing import (
    Balance,
    collapse_word,
    judge_rate,
    routing_sentence,
    site_routing,
)
from layerroute.errors import UserError
from layerroute.lab.arms import OTHER, Arm, Kind, group_arms
from layerroute.lab.compare import compare
from layerroute.lab.runs import Run
from layerroute.routing.controls import CONTROLS
from tests.unit.lab.record_factory import record, sites


def run(arm: str, seed: int = 42, **settings: Any) -> Run:
    return Run(record(arm, seed, **settings), Path(f"{arm}-seed{seed}") / "record.json")


def arm(*runs: Run) -> Arm:
    ((found,), _) = group_arms(runs, QUESTION.kind_of)
    return found


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"pattern": ["softmax"] * 3}, kinds.ALL_SOFTMAX),
        ({"pattern": ["gdn"] * 3}, kinds.ALL_GDN),
        ({"pattern": ["gdn", "softmax"]}, kinds.STATIC),
        ({"rates": sites(0.5, 0.5)}, kinds.DYNAMIC),
        ({"rates": sites(0.5, 0.5), "control": "random"}, kinds.RANDOM),
        ({"rates": sites(0.5, 0.5), "control": "periodic"}, kinds.PERIODIC),
        ({"rates": sites(1.0, 0.0), "control": "static"}, kinds.STATIC_CONTROL),
    ],
)
def test_kind_is_told_from_content(settings: dict[str, Any], kind: Kind) -> None:
    assert arm(run("dynamic_all_softmax_random", **settings)).kind == kind


def test_kind_of_a_failed_routed_run_is_told_from_its_recipe() -> None:
    failed = run("x", rates=sites(0.5, 0.5), control="random", status="failed")
    assert failed.value("routing") is None
    assert arm(failed).kind == kinds.RANDOM


def test_kind_without_a_layer_pattern_is_unknown() -> None:
    assert arm(run("baseline", recipe={"model": {}})).kind == OTHER


def test_unfinished_runs_are_in_no_mean() -> None:
    found = arm(run("a", 42, loss=4.0), run("a", 43, loss=4.2), run("a", 44, status="failed"))
    assert found.loss == {42: 4.0, 43: 4.2}
    assert found.mean("metrics", "validation_loss") == pytest.approx(4.1)
    assert [r.seed for r in found.unfinished] == [44]


def test_seeds_of_one_recipe_are_one_arm() -> None:
    arms, notes = group_arms([run("a", 42), run("a", 43)])
    assert [found.seeds for found in arms] == [(42, 43)]
    assert notes == ()


def test_one_name_with_two_recipes_is_two_arms() -> None:
    arms, (note,) = group_arms([run("a", 42, steps=200), run("a", 43, steps=29)])
    assert sorted(found.label for found in arms) == ["a (max_steps 200)", "a (max_steps 29)"]
    assert "2 recipes" in note


def test_two_settings_where_one_does_not_tell_apart() -> None:
    runs = [run("a", steps=s, learning_rate=lr) for s, lr in ((10, 1e-3), (10, 2e-3), (20, 1e-3))]
    labels = sorted(found.label for found in group_arms(runs)[0])
    assert labels == [
        "a (max_steps 10, learning_rate 0.001)",
        "a (max_steps 10, learning_rate 0.002)",
        "a (max_steps 20, learning_rate 0.001)",
    ]


def test_a_seed_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"two completed runs of arm a have seed 42"):
        group_arms([run("a", 42), Run(record("a", 42), Path("elsewhere/record.json"))])


def test_a_failed_try_beside_a_completed_one_is_kept() -> None:
    found = arm(run("a", 42, status="failed"), Run(record("a", 42), Path("again/record.json")))
    assert found.seeds == (42,)
    assert len(found.unfinished) == 1


def test_order_is_baseline_first_whatever_the_input() -> None:
    runs = [run("all_softmax", pattern=["softmax"] * 4), run("dynamic", rates=sites(0.5)), run("baseline")]
    assert [found.label for found in compare(runs).arms] == ["baseline", "dynamic", "all_softmax"]


@pytest.mark.parametrize(
    ("rate", "balance"),
    [
        (0.5, Balance.BALANCED),
        (0.4, Balance.BALANCED),
        (0.6, Balance.BALANCED),
        (0.39, Balance.LEANING),
        (0.1, Balance.LEANING),
        (0.9, Balance.LEANING),
        (0.901, Balance.COLLAPSED),
        (0.05, Balance.COLLAPSED),
    ],
)
def test_balance(rate: float, balance: Balance) -> None:
    assert judge_rate(rate) is balance


def test_collapse_is_told_by_seed() -> None:
    found = arm(run("d", 42, rates=sites(0.5, 0.95)), run("d", 43, rates=sites(0.5, 0.7)))
    second = site_routing(found)[1]
    assert second.interpretation(found.paths) == "Collapsed to softmax (1/2), Leaning to softmax (1/2)"
    assert collapse_word(found) == "Yes, 1 of 4"
    assert "collapsed" in routing_sentence(found)


def test_a_budget_that_holds_a_low_rate_has_not_collapsed() -> None:
    def held(*rates: float, asked: float = 0.05) -> Arm:
        content = record("d", rates=sites(*rates))
        content["recipe"]["model"]["routing"] |= {"budget": "quantile", "rate": asked}
        content["routing"]["mean_rate"] = sum(rates) / len(rates)
        return arm(Run(content, Path("d/record.json")))

    found = held(0.04, 0.06)
    assert collapse_word(found) == "No, at the rate asked for"
    assert "holds the rate of 5% that was asked for" in routing_sentence(found)
    assert collapse_word(held(0.95, 0.95, asked=0.95)) == "No, at the rate asked for"
    assert collapse_word(held(0.05, 0.05, asked=0.25)) == "Yes"
    assert collapse_word(held(0.0, 0.1)) == "Yes, 1 of 2"


def test_a_collapse_is_told_of_the_path_that_took_all_and_of_no_other() -> None:
    found = arm(run("d", 42, rates=sites(0.5, 0.95)), run("d", 43, rates=sites(0.5, 0.3)))
    assert "on one path) to softmax at 1 of 2 sites" in routing_sentence(found)


def test_a_control_is_never_taken_for_a_learned_router() -> None:
    for control in CONTROLS:
        found = arm(run("d", rates=sites(0.5, 1.0), control=control)).kind
        assert found.control and not found.learned and control in str(found)


def test_a_router_that_prefers_nothing_is_undecided() -> None:
    unsure = record("d", rates=sites(0.97, 0.5))
    unsure["routing"]["token_entropy"] = {"layer1.mixer": 0.6931, "layer2.mixer": 0.4}
    found = site_routing(arm(Run(unsure, Path("d/record.json"))))
    assert [site.undecided for site in found] == [True, False]
    del unsure["routing"]["token_entropy"]
    assert not any(site.undecided for site in site_routing(arm(Run(unsure, Path("d/record.json")))))


def test_words_of_other_arms() -> None:
    assert collapse_word(arm(run("b"))) == "N/A"
    assert collapse_word(arm(run("r", rates=sites(0.5), control="random"))) == "N/A (random control)"
    assert collapse_word(arm(run("d", rates=sites(0.5, 0.45)))) == "No"
    assert collapse_word(arm(run("d", rates=sites(0.5, 0.2)))) == "No, but leaning"
    assert routing_sentence(arm(run("b"))) == ""
    assert "balanced" in routing_sentence(arm(run("d", rates=sites(0.5, 0.45))))
