"""A third capability is one folder: it gets tables, tests, verdict and terminal, and no other file names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerroute.cli.main import main
from layerroute.errors import UserError
from layerroute.lab.compare import compare
from layerroute.lab.question import questions
from layerroute.lab.runs import load_runs
from layerroute.outcomes import Outcome
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


def test_it_gets_a_figure_a_page_and_a_paper(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert main(["report", str(toy), "--out", str(out), "--json"]) == 0
    page, paper = (" ".join((out / name).read_text().split()) for name in ("index.html", "paper.md"))
    for words in (
        "Does a model answer more if each token picks its depth?",
        "picked ends with a higher accuracy than fixed",
        "Δ accuracy",
        "Could show",
    ):
        assert words in page and words in paper
    assert "<svg" in page and list((out / "figures").glob("*.csv"))


def test_unequal_cost_gives_it_no_verdict_either(toy: Path) -> None:
    runs = load_runs([toy])
    for run in runs:
        if run.arm == "picked":
            run.record["flops"]["executed_per_token"] *= 1.01
    found = compare(runs)
    assert found.outcome is Outcome.UNEQUAL_COST
    assert "There is no verdict on picked against fixed: +1.0% executed FLOPs per token." in found.verdict


def test_two_folders_cannot_ask_about_one_capability(toy: Path) -> None:
    again = toy.parent / "capabilities" / "again"
    again.mkdir()
    (again / "__init__.py").touch()
    (again / "question.py").write_text(QUESTION, encoding="utf-8")
    with pytest.raises(ValueError, match=r"asked about once.*depth_routing"):
        questions()


def test_runs_that_nobody_asks_about_are_told(toy: Path) -> None:
    runs = load_runs([toy])
    for run in runs:
        run.record["capability"] = "dept_routing"
    with pytest.raises(UserError, match="no question about runs of dept_routing, only about those of"):
        compare(runs)
