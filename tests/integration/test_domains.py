"""``layerroute domains``: the rates that ``evaluate`` tells, text by text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerroute.cli.main import main
from layerroute.evaluation import domains


def test_the_command_reads_each_text_by_itself(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prose.txt").write_text("The cat sat on the mat and looked at the dog. " * 40)
    (tmp_path / "code.txt").write_text("def f(x):\n    return [y + 1 for y in x]\n" * 40)
    texts = [f"{name}={tmp_path / name}.txt" for name in ("prose", "code")]
    command = ["domains", str(finished_run), *texts, "--sequence-length", "32", "--windows", "4"]
    assert main([*command, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "softmax share" in capsys.readouterr().out
    content = json.loads((tmp_path / "out/domains.json").read_text())
    assert [one["domain"] for one in content["domains"]] == ["prose", "code"]
    assert all(
        one["windows"] == 4 and set(one["sites"]) == {"layer1.mixer", "layer2.mixer"}
        for one in content["domains"]
    )
    # The same windows through `evaluate` give the same rate and loss.
    assert main(["evaluate", str(finished_run), "--data", str(tmp_path / "code.txt"), "--sequence-length", "32",
                 "--sequences", "4", "--json", "--device", "cpu"]) == 0  # fmt: skip
    whole = json.loads(capsys.readouterr().out)
    assert content["domains"][1]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert content["domains"][1]["rate"] == pytest.approx(whole["routing"]["mean_rate"], abs=1e-6)


def test_a_text_that_cannot_be_read_is_told_before_any_is_scored(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prose.txt").write_text("The cat sat on the mat and looked at the dog. " * 40)
    (tmp_path / "short.txt").write_text("too short")
    scored: list[object] = []
    monkeypatch.setattr(domains, "forward", lambda *given: scored.append(given))
    for name, told in (("missing.txt", "missing.txt"), ("short.txt", "give more text")):
        texts = [f"prose={tmp_path / 'prose.txt'}", f"code={tmp_path / name}"]
        assert main(["domains", str(finished_run), *texts, "--sequence-length", "32", "--device", "cpu"]) == 2
        assert told in capsys.readouterr().err and not scored


def test_what_is_no_text_is_told(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["domains", str(finished_run), "prose.txt"]) == 2
    assert "write NAME=FILE" in capsys.readouterr().err
