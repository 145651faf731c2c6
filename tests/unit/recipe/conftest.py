"""Fixtures of the recipe tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from layerroute.recipe.sections import CAPABILITIES
from tests.unit.recipe.probe_sections import SECTIONS


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the capability ``probe``."""
    monkeypatch.setitem(CAPABILITIES, "probe", SECTIONS)


@pytest.fixture
def recipe_file(tmp_path: Path, probe: None) -> Callable[..., Path]:
    """Write a recipe: ``recipe_file("train: {max_steps: 3}")``; the capability and a model are added."""

    def write(
        text: str = "", name: str = "arm.yaml", head: str = "capability: probe\nmodel: {width: 8}\n"
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text)
        return path

    return write
