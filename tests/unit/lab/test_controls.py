from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention.question import CONTROLS, QUESTION
from layerroute.lab.arms import group_arms
from layerroute.lab.controls import ControlCheck, check_control
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record, sites

NAMES = [
    "all-softmax",
    "all-GDN",
    "static",
    "static at equal parameters",
    "static at equal FLOPs",
    "dynamic",
    "random at the same rate",
    "periodic at the same rate",
]
DYNAMIC: dict[str, Any] = {"rates": sites(0.5, 0.4)}


def check(**arms: dict[str, Any]) -> dict[str, ControlCheck]:
    found, _ = group_arms(
        [Run(record(name, **settings), Path(name)) for name, settings in arms.items()], QUESTION.kind_of
    )
    subject = next((arm for arm in found if arm.label == "dyn"), None)
    return {one.name: check_control(one, found, subject) for one in CONTROLS}


def test_everything_is_missing_beside_a_dynamic_arm_alone() -> None:
    found = check(dyn=DYNAMIC)
    assert list(found) == NAMES
    assert [name for name, entry in found.items() if entry.missing] == [
        name for name in NAMES if name != "dynamic"
    ]


def test_a_whole_set_of_arms_lacks_nothing() -> None:
    found = check(
        dyn=DYNAMIC,
        a={"pattern": ["softmax"] * 4},
        b={"pattern": ["gdn"] * 4},
        c={"executed": 2_843_000.0},  # what dyn executes
        d={"extra_parameters": 131_584},
        e={**DYNAMIC, "rates": sites(0.46, 0.45), "control": "random"},
        f={**DYNAMIC, "control": "periodic"},
    )
    assert [name for name, entry in found.items() if entry.missing] == []
    assert found["static at equal parameters"].arms == ("d",)
    assert found["static at equal FLOPs"].arms == ("c",)


def test_names_do_not_make_a_control() -> None:
    found = check(dyn=DYNAMIC, random={}, all_softmax={}, baseline_matched={})
    assert found["random at the same rate"].missing
    assert found["all-softmax"].missing
    assert found["static at equal parameters"].missing
    assert "nearest is" in found["static at equal parameters"].detail


@pytest.mark.parametrize(("rate", "missing"), [(0.45, False), (0.469, False), (0.48, True)])
def test_rate_tolerance(rate: float, missing: bool) -> None:
    found = check(dyn=DYNAMIC, r={**DYNAMIC, "rates": sites(rate, rate), "control": "random"})
    assert found["random at the same rate"].missing is missing


def test_a_failed_control_is_missing_and_told() -> None:
    found = check(dyn=DYNAMIC, p={**DYNAMIC, "control": "periodic", "status": "failed"})
    assert found["periodic at the same rate"].missing
    assert "p (failed)" in found["periodic at the same rate"].detail


def test_a_static_control_of_the_routed_model_matches_parameters_and_flops() -> None:
    found = check(dyn=DYNAMIC, s={"rates": sites(1.0, 0.0), "control": "static"})
    assert found["static at equal parameters"].arms == ("s",)
    assert found["static at equal FLOPs"].arms == ("s",)
    assert found["static"].missing


def test_without_a_dynamic_arm_nothing_can_be_matched() -> None:
    found = check(a={})
    assert not found["dynamic"].arms
    assert "dynamic" not in [name for name, entry in found.items() if entry.missing]
    assert found["static at equal FLOPs"].missing
    assert not found["static"].missing


def test_equal_flops_are_those_that_were_executed() -> None:
    """An ideal saving that no execution reached makes no arm equal to a cheaper one."""
    dynamic = record("dyn", **DYNAMIC)
    needs = dynamic["flops"]["routed_per_token"]
    ideal, real = ({**record(name)["flops"]} for name in ("ideal", "real"))
    dynamic["flops"]["executed_per_token"] = 1.2 * needs
    ideal["executed_per_token"], real["executed_per_token"] = needs, 1.203 * needs
    runs = [dynamic, record("ideal", flops=ideal), record("real", flops=real, extra_parameters=9000)]
    arms, _ = group_arms([Run(content, Path(content["arm"])) for content in runs], QUESTION.kind_of)
    subject = next(arm for arm in arms if arm.label == "dyn")
    control = next(one for one in CONTROLS if one.name == "static at equal FLOPs")
    found = check_control(control, arms, subject)
    assert found.arms == ("real",)
    assert "executed FLOPs per token" in found.detail
