"""The Triton kernel, interpreted: in a process of its own, before which nothing has imported Triton."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from layerroute.errors import UserError
from layerroute.ops.routed_attention import dispatch, routed_attention


@pytest.mark.slow
def test_kernels_equal_the_reference_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    cases = Path(__file__).parents[2] / "gpu" / Path(__file__).name
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LAYERROUTE_NO_TYPECHECK": "1",
        "PYTEST_ADDOPTS": "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory() -> None:
    pytest.importorskip("triton")
    # The compiler, too, finds only functions that nothing wraps.
    environment = {**os.environ, "LAYERROUTE_NO_TYPECHECK": "1", "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(Path(__file__).with_name("triton_compiled.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6
    for _, _, code, shared in lines:
        assert (
            int(code) > 10_000 and int(shared) < 100_000
        )  # an H100 has 227 KB a block, consumer cards 100 KB


def test_without_triton_the_backend_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    query, key = torch.randn(2, 1, 8), torch.randn(1, 2, 1, 8)
    where = {"row": torch.tensor([0, 0]), "position": torch.tensor([0, 1])}
    with pytest.raises(UserError, match="pip install triton"):
        routed_attention(query, key, key, **where, backend="triton")
    assert routed_attention(query, key, key, **where).shape == (2, 1, 8)


def test_the_cpu_takes_the_gathered_backend() -> None:
    assert dispatch._choose(torch.zeros(1, 1, 8), torch.zeros(1, 1, 1, 8), 0.0)[0] == "gathered"
