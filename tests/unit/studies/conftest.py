"""A study of tiny runs, and a session that trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.studies.board import Board, Claim
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from layerroute.studies.session import Session
from tests.tiny import write_recipe


def write_study(folder: Path, **content: Any) -> Path:
    """Write two tiny recipes and a study of them; ``content`` is laid over it."""
    write_recipe(folder, name="routed")
    write_recipe(folder, name="static", model={"layer_pattern": ["gdn", "softmax"]})
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"arms": ["routed.yaml", "static.yaml"], "seeds": [1, 2], **content}))
    return path


def take(session: Session) -> tuple[Board, Claim]:
    taken = session.claim()
    assert taken is not None
    return taken


@pytest.fixture
def make_session(tmp_path: Path) -> Callable[..., Session]:
    """Make a session of the tiny study; keyword arguments go to the study file."""

    def make(heartbeat: int = 30, grace: int = 180, **content: Any) -> Session:
        plan = Plan(load_study(write_study(tmp_path, **content)))
        return Session(plan, tmp_path / "out", heartbeat=heartbeat, grace=grace)

    return make
