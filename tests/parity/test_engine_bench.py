"""`layerroute bench engine` on a tiny export: its gate passes, and all arms are timed.

Needs vLLM, which has an environment of its own: ``make vllm``.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

from tests.parity.engine_models import export


def test_all_arms_are_timed_behind_the_gate(tmp_path):
    folder, record = export(tmp_path, vocabulary=300), tmp_path / "record.json"
    words = ["bench", "engine", "--export", folder, "--skip", "0.5", "--batches", "1", "2", "--prefill", "24"]
    more = ["--new", "4", "--prompt", "8", "--repeats", "3", "--busy", "mark", "--full-depth-from", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "layerroute", *map(str, words), *more, "--out", str(record)],
        check=False,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(record.read_text())["rows"]
    assert [(row["work"], row["batch"]) for row in rows] == [("decode", 1), ("decode", 2), ("prefill", 1)]
    for row in rows:
        assert {"plain", "plain again", "routed", "full depth in batches"} <= set(row["arms"])
        assert {check["what"] for check in row["gate"]} >= {"greedy answers", "log-probabilities"}
        assert all(check["deviation"] <= check["tolerance"] for check in row["gate"])
