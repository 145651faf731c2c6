"""``layerroute doctor``: tells what is there, what is missing, and says so in its exit code."""

from __future__ import annotations

import email.message
import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from layerroute.cli import doctor
from layerroute.cli.main import main

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyproject.toml says now: an editable install remembers what it said when it was made."""
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    metadata = email.message.Message()
    for name in extras:
        metadata["Provides-Extra"] = name

    def conditional(line: str, extra: str) -> str:
        package, _, marker = line.partition(";")
        also = f" and ({marker})" if marker else ""
        return f"{package}; extra == '{extra}'{also}"

    lines = [
        *PROJECT["dependencies"],
        *(conditional(line, name) for name, own in extras.items() for line in own),
    ]
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: metadata)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)


def examine(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == code
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_json_tells_of_this_very_installation(capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(capsys)
    assert report["problems"] == []
    assert report["torch"]["version"] == torch.__version__
    assert report["torch"]["threads"] == torch.get_num_threads()
    assert report["versions"]["transformers"] == importlib.metadata.version("transformers")
    assert report["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert report["devices"][0]["device"] == "cpu"
    assert len(report["devices"]) == 1 + torch.cuda.device_count()
    assert report["precision"]["cpu"]["name"] in ("fp32", "bf16")
    assert report["gated_delta"]["backends"]["chunked"]["available"] is True
    assert report["routed_attention"]["backends"]["gathered"]["available"] is True
    assert report["routed_attention"]["backends"]["triton"]["available"] is (
        torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    )
    assert report["processes"]["gloo"] is torch.distributed.is_gloo_available()
    assert report["trackers"]["tensorboard"] == importlib.metadata.version("tensorboard")
    assert report["disk"]["here_free_gib"] > 0
    assert set(report["extras"]) == set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs"}


def test_text_has_a_line_for_each_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    heads = [line.split()[0] for line in out.splitlines()]
    assert {"machine", "platform", "torch", "device", "cache", "disk", "extra", "versions"} <= set(heads)
    assert {"trackers", "processes", "attention"} <= set(heads)
    assert "GDN runs on" in out
    assert "routed attention on 'gathered'" in out
    assert out.endswith("All that layerroute needs is here.\n")


def test_the_cache_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache" / "not" / "yet"))
    assert examine(capsys)["cache"] == {
        "folder": str(tmp_path / "cache" / "not" / "yet"),
        "files": 0,
        "gib": 0,
    }
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path))
    with (tmp_path / "tokens").open("wb") as file:
        file.truncate(2**30)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    report = examine(capsys)
    assert report["cache"] == {"folder": str(tmp_path), "files": 1, "gib": 1.0}
    assert report["hub_cache"] == {"folder": str(tmp_path / "home" / "hub"), "files": 0, "gib": 0}


def test_a_missing_extra_is_advice_and_a_missing_or_old_need_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version
    state: dict[str, str | None] = {"bitsandbytes": None}

    def version(name: str) -> str:
        found = state[name] if name in state else real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    report = examine(capsys)
    assert report["extras"]["quantization"]["missing"] == ["bitsandbytes"]
    assert any("pip install 'layerroute[quantization]'" in line for line in report["advice"])

    state.update({"optuna": None, "matplotlib": None})
    report = examine(capsys)
    # What an extra of an extra brings counts: a study writes a report.
    assert report["extras"]["study"]["missing"] == ["optuna", "matplotlib"]
    assert report["extras"]["report"]["missing"] == ["matplotlib"]
    assert report["extras"]["train"]["missing"] == []

    state.update({"bitsandbytes": "99", "safetensors": None, "rich": "1.0"})
    report = examine(capsys, code=1)
    assert report["extras"]["quantization"]["missing"] == []
    assert len(report["problems"]) == 2
    assert any(
        line.startswith("layerroute needs safetensors>=") and "not installed" in line
        for line in report["problems"]
    )
    assert any("version 1.0 is installed" in line for line in report["problems"])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.count("PROBLEM ") == 2


def test_sources_that_are_not_installed_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("version", "metadata", "requires"):
        monkeypatch.setattr(importlib.metadata, function, of)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (
        "layerroute is not installed, it runs from its sources: what it needs was not checked"
        in report["advice"]
    )


def test_a_torch_that_cannot_be_imported_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "layerroute.ops.gated_delta", raising=False)
    report = examine(capsys, code=1)
    assert any("torch cannot be imported" in line for line in report["problems"])
    assert report["hardware"]["accelerator"] is None


def test_a_driver_without_a_gpu_for_torch_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert any("NVIDIA driver" in line for line in examine(capsys)["advice"])


def test_a_file_that_goes_while_it_is_measured_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who prepares data, or loads from the hub, renames and deletes files meanwhile."""
    (tmp_path / "stays").write_bytes(b"1" * 2**21)
    gone = tmp_path / "gone"
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: [folder / "stays", gone])
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert doctor._cache(tmp_path) == {"folder": str(tmp_path), "files": 1, "gib": 0.002}
