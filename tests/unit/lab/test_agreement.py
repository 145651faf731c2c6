"""Agreement between seeds, against what rates alone would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.capabilities.attention.kinds import kind_of
from layerroute.lab.agreement import agreement_table, seed_agreement
from layerroute.lab.arms import Arm
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record, sites


def arm(folder: Path, choices: list[np.ndarray], *, words: list[str] | None = None, **settings: Any) -> Arm:
    runs = []
    for seed, choice in enumerate(choices):
        run = folder / f"seed{seed}"
        run.mkdir(parents=True)
        tokens = [f"w{n}" for n in range(len(choice))] if words is None or seed == 0 else words
        sentence = {
            "tokens": tokens,
            "choice": choice.tolist(),
            "probability": (0.5 * np.ones(choice.shape)).tolist(),
        }
        content = {
            "sites": ["layer1.mixer", "layer2.mixer"],
            "paths": ["gdn", "softmax"],
            "sentences": [sentence],
        }
        (run / "token_routes.json").write_text(json.dumps(content))
        found = record("dynamic", seed, rates=sites(0.25, 0.25), **settings) | {
            "token_routes": "token_routes.json"
        }
        runs.append(Run(found, run / "record.json"))
    return Arm("dynamic", tuple(runs), kind_of)


def test_the_same_choices_agree_fully(tmp_path: Path) -> None:
    choice = np.random.default_rng(0).integers(0, 2, (200, 2))
    found = seed_agreement(arm(tmp_path, [choice, choice, choice]))
    assert found is not None
    assert (found.pairs, found.decisions, found.same, found.kappa) == (3, 400, 1.0, 1.0)


def test_chance_is_told_from_agreement(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    one, other = (generator.random((4000, 2)) < 0.1 for _ in range(2))
    found = seed_agreement(arm(tmp_path, [one.astype(int), other.astype(int)]))
    assert found is not None and found.kappa is not None
    assert found.same > 0.8, "rare choices agree often, by chance"
    assert found.same == pytest.approx(found.expected, abs=0.01)
    assert abs(found.kappa) < 0.05


def test_opposite_choices_agree_less_than_chance(tmp_path: Path) -> None:
    choice = np.random.default_rng(0).integers(0, 2, (100, 2))
    found = seed_agreement(arm(tmp_path, [choice, 1 - choice]))
    assert found is not None and found.kappa is not None and found.kappa < -0.9


def test_other_tokens_and_single_runs_are_not_compared(tmp_path: Path) -> None:
    choice = np.zeros((3, 2), dtype=int)
    assert seed_agreement(arm(tmp_path / "one", [choice])) is None
    assert seed_agreement(arm(tmp_path / "two", [choice, choice], words=["x", "y", "z"])) is None
    collapsed = seed_agreement(arm(tmp_path / "three", [choice, choice]))
    assert collapsed is not None and collapsed.kappa is None, (
        "all on one path: nothing beyond chance can be seen"
    )


def test_controls_are_left_out_of_the_table(tmp_path: Path) -> None:
    choice = np.random.default_rng(0).integers(0, 2, (20, 2))
    learned = arm(tmp_path / "learned", [choice, choice])
    control = arm(tmp_path / "control", [choice, choice], control="random")
    table = agreement_table([learned, control])
    assert table is not None and [row.cells[0].text for row in table.rows] == ["dynamic"]
    assert agreement_table([control]) is None
