"""One finished tiny run, shared by all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerroute.cli.main import main
from tests.tiny import write_recipe


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a completed run of the tiny routed recipe, with TensorBoard; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {
        "train": {"report_to": ["tensorboard"], "max_steps": 30},
        "data": {"copies": {"length": 2, "beyond": 4}},
    }
    recipe = write_recipe(folder, **settings)
    out = folder / "run"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    return out
