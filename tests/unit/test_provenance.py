"""Provenance: the revision of this code and of no other, and no torch for asking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from layerroute import provenance as module
from layerroute.provenance import provenance


def test_provenance_names_revision_and_dirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    package = tmp_path / "src" / "layerroute"
    package.mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    (package / "provenance.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    assert provenance()["revision"] == git("rev-parse", "HEAD")
    assert provenance()["dirty"] is False
    (tmp_path / "recipes" / "new.yaml").write_text("name: new\n")
    assert provenance()["dirty"] is True


def test_provenance_ignores_a_repository_that_merely_holds_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ".venv" / "lib" / "layerroute"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    found = provenance()
    assert found["revision"] is None or found["dirty"] is False


def test_provenance_imports_no_torch() -> None:
    code = (
        "import sys; from layerroute.provenance import provenance; "
        "p = provenance(); print('torch' in sys.modules, p)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False ")
    assert "'torch': " in result.stdout
    assert "'cores': 0" not in result.stdout
