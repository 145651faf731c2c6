"""Provenance: the revision of this code and of no other, and no torch for asking."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from layerroute import provenance as module
from layerroute.provenance import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_package(top: Path, package: Path) -> None:
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("x = 1\n")
    git(top, "init", "-q")
    git(top, "add", "--force", ".")
    git(top, "commit", "-q", "-m", "one")


def test_provenance_names_revision_and_dirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "layerroute"
    commit_package(tmp_path, package)
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    assert provenance()["revision"] == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("beside the code")
    assert provenance()["dirty"] is False
    (tmp_path / "recipes" / "new.yaml").write_text("name: new\n")
    assert provenance()["dirty"] is True


def test_provenance_ignores_a_repository_that_merely_holds_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ".venv" / "lib" / "layerroute"
    commit_package(tmp_path, package)
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    assert provenance()["revision"] is None
    assert provenance()["dirty"] is None


def test_provenance_knows_the_commit_that_was_installed_from_version_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        version = "1"

        def read_text(self, name: str) -> str | None:
            return (
                '{"url": "x", "vcs_info": {"vcs": "git", "commit_id": "abc"}}'
                if name == "direct_url.json"
                else None
            )

    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    assert (provenance()["revision"], provenance()["dirty"]) == ("abc", False)


def test_provenance_imports_no_torch() -> None:
    code = (
        "import sys; from layerroute.provenance import provenance; "
        "p = provenance(); print('torch' in sys.modules, p)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("False ")
    assert "'torch': " in result.stdout
    assert "'cores': 0" not in result.stdout
