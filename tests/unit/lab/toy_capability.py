"""A third capability in one folder: routing by exit, asked by its accuracy, which no part of the house names."""

from __future__ import annotations

from pathlib import Path

import pytest

import layerroute.capabilities
from layerroute.lab.question import questions
from tests.unit.lab.record_factory import record, write_run

QUESTION = '''
"""The question: does a router that picks the depth by token answer more than random depths."""

from layerroute.lab.arms import Arm, Kind
from layerroute.lab.controls import SAME_RATE, controls_table
from layerroute.lab.question import Control, Metric, Question, Shown

LEARNED, RANDOM, FIXED = Kind("picked depth", learned=True), Kind("random depth", control=True), Kind("fixed depth")


def kind_of(arm: Arm) -> Kind:
    return {"random": RANDOM, None: LEARNED}[arm.example.value("routing", "control")] if arm.sites else FIXED


QUESTION = Question(
    capability="depth_routing",
    title="Depth by token",
    text="Does a model answer more if each token picks its depth?",
    kinds=(FIXED, LEARNED, RANDOM),
    kind_of=kind_of,
    metric=Metric(
        label="accuracy",
        unit=" points",
        column="Δ accuracy",
        by_seed=lambda arm: arm.by_seed("metrics", "validation_accuracy"),
        lower_is_better=False,
        digits=1,
        factor=100,
    ),
    baselines=(FIXED,),
    controls=(
        Control(name="fixed depth", refutes="that depth must be picked", kinds=(FIXED,)),
        Control(name="random depth", refutes="that it matters which", kinds=(RANDOM,), match=SAME_RATE),
    ),
    tables=lambda comparison: {"controls": controls_table(comparison.controls, comparison.subject)},
    terminal=(Shown(table="main"), Shown(table="differences"), Shown(table="controls")),
)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs of a capability that is one file beside those of the house."""
    folder = tmp_path / "capabilities" / "depth"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "question.py").write_text(QUESTION, encoding="utf-8")
    monkeypatch.setattr(
        layerroute.capabilities, "__path__", [*layerroute.capabilities.__path__, str(folder.parent)]
    )
    questions.cache_clear()
    for arm, accuracy, control in (
        ("fixed", 0.40, None),
        ("picked", 0.47, None),
        ("chance", 0.41, "random"),
    ):
        for seed in (1, 2, 3):
            rates = None if arm == "fixed" else {"layer1.block": 0.5}
            content = record(
                arm, seed, rates=rates, control=control, executed=1e6, capability="depth_routing"
            )
            content["metrics"]["validation_accuracy"] = (
                accuracy + 0.01 * seed + 0.001 * (seed % 2) * (arm == "picked")
            )
            content["token_routes"] = None
            write_run(tmp_path / "runs" / content["run"], content)
    yield tmp_path / "runs"
    questions.cache_clear()
