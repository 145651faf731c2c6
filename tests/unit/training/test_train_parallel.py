"""Engines that cannot keep what is promised are refused, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_train import train
from tests.tiny import write_recipe


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "inside the backward pass, where a loss that is NaN cannot stop it"),
        ("ACCELERATE_USE_FSDP", "needs several processes with GPUs"),
    ],
)
def test_an_engine_that_was_asked_for_and_will_not_run_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    told: str,
) -> None:
    monkeypatch.setenv(variable, "true")
    assert train(write_recipe(tmp_path), tmp_path / "run") == 2
    errors = capsys.readouterr().err
    (line,) = [line for line in errors.splitlines() if line.startswith("layerroute: error: ")]
    assert told in line
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
