"""`generate --compile` and `bench decode --compile` as users meet them, with a real compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerroute.cli.main import main
from layerroute.routing import RoutingConfig
from layerroute.skipping import SkipConfig, add_router, load_pretrained, save_router
from tests.tiny_pretrained import write_pretrained

pytestmark = pytest.mark.slow


def run(*words: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: torch.compile cannot trace the run-time type checks of the tests.
    environment = os.environ | {"LAYERROUTE_NO_TYPECHECK": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "layerroute", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_same_text_comes_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the router reads a state and decides which tokens skip\n" * 30)
    write_pretrained(tmp_path / "base", tmp_path / "text.txt", num_hidden_layers=6)
    model, _ = load_pretrained(str(tmp_path / "base"))
    skip = SkipConfig(router_layer=1, routing=RoutingConfig(control="random", rate=0.5))
    router = str(save_router(add_router(model, skip), tmp_path / "router"))
    words = ["generate", router, "the router reads", "--max-new-tokens", "12", "--json"]
    capsys.readouterr()
    assert main(words) == 0
    eager = json.loads(capsys.readouterr().out)
    done = run(*words, "--compile")
    compiled = json.loads(done.stdout)
    assert "[compiling" in done.stderr and compiled["compiled"] and not eager["compiled"]
    assert compiled["text"] == eager["text"]
    assert compiled["routing"]["choice"] == eager["routing"]["choice"]


def test_bench_decode_compares_four_ways_behind_the_gate(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    size = ["--shape", "tiny", "--sizes", "2x12", "--new-tokens", "3", "--skip", "0.5", "--repeats", "3"]
    told = run("bench", "decode", "--compile", *size, "--out", str(out)).stdout
    record = json.loads(out.read_text())
    (row,) = record["rows"]
    assert set(row["arms"]) == {"dense", "dense compiled", "sparse", "sparse compiled"}
    assert row["baseline"] == "dense compiled" and row["compiled"] and isinstance(row["busy"], bool)
    gate = {check["what"] for check in row["gate"]}
    for what in ("logits", "likeliest tokens"):
        assert f"{what} of routed, compiled and masked" in gate
        assert f"{what} of plain, compiled and eager" in gate
    assert "cached tensor 0 of compiled and eager" in gate
    assert row["arms"]["sparse compiled"]["way"] in ("read", "masked", "eager")
    (ratio,) = record["conclusion"].values()
    assert f"sparse compiled is {ratio:.2f}x as fast as" in told
