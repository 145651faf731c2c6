from pathlib import Path

import pytest
import torch

from layerroute import precision
from layerroute.errors import UserError
from layerroute.precision import autocast, choose_device, choose_precision, cpu_flags

CPU = torch.device("cpu")


def test_flags_are_read_of_x86_and_arm(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 sse\n\nflags : other\n")
    arm.write_text("Features\t: fp asimd bf16\n")
    assert "avx512_bf16" in cpu_flags(str(x86))
    assert "other" not in cpu_flags(str(x86))
    assert "bf16" in cpu_flags(str(arm))
    assert cpu_flags(str(tmp_path / "none")) == frozenset()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"avx512f", "avx512_bf16"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"avx2", "avx512f"}, "fp32"),
        (set(), "fp32"),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_has_it(monkeypatch, flags, name) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert choose_precision("auto", CPU).name == name
    assert choose_precision("fp32", CPU).name == "fp32"
    assert choose_precision("bf16", CPU).name == "bf16"


def test_a_gpu_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="finds no GPU"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_autocast_computes_in_the_precision_named() -> None:
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with autocast("bf16", CPU):
        assert layer(x).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(x).dtype == torch.float32
