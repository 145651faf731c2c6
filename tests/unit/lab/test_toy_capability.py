"""A third capability is one folder: it gets tables, tests, verdict and terminal, and no other file names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerroute.cli.main import main
from layerroute.lab.compare import compare
from layerroute.lab.question import Outcome
from layerroute.lab.runs import load_runs
from tests.unit.lab.toy_capability import QUESTION, toy

__all__ = ["toy"]


def test_it_is_small() -> None:
    assert len(QUESTION.splitlines()) < 60


def test_its_metric_decides_and_its_controls_are_asked_for(toy: Path) -> None:
    found = compare(load_runs([toy]))
    assert found.question.capability == "depth_routing"
    assert (found.subject and found.subject.label, found.baseline and found.baseline.label) == (
        "picked",
        "fixed",
    )
    assert found.outcome is Outcome.WINS, "more accuracy is better, though its loss is the same"
    assert found.verdict.startswith(
        "picked ends with a higher accuracy than fixed (+7.1 points, 95% interval +6.9 to +7.2, 3 seeds, paired)."
    )
    assert found.missing == []
    without = compare([run for run in load_runs([toy]) if run.arm != "chance"])
    assert (
        "1 control of 2 is missing, so a difference cannot yet be credited to routing: random depth."
        in without.verdict
    )


def test_the_command_shows_it(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(toy)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "picked depth",
        "Δ accuracy",
        "Could show",
        "picked ends with a higher accuracy than fixed",
    ):
        assert words in shown
    assert main(["compare", str(toy), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["Comparison"] for row in content["tables"]["differences"]["rows"]] == [
        "picked − fixed",
        "picked − chance",
        "chance − fixed",
    ]
    assert content["outcome"] == "wins" and content["controls_missing"] == []


def test_unequal_cost_gives_it_no_verdict_either(toy: Path) -> None:
    runs = load_runs([toy])
    for run in runs:
        if run.arm == "picked":
            run.record["flops"]["executed_per_token"] *= 1.01
    found = compare(runs)
    assert found.outcome is Outcome.UNEQUAL_COST
    assert "There is no verdict on picked against fixed: +1.0% executed FLOPs per token." in found.verdict
