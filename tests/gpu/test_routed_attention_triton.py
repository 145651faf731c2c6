"""The Triton kernel of routed attention agrees with the reference, on a GPU."""

import pytest
import torch

from layerroute.ops.routed_attention import dispatch, routed_attention
from tests.unit.ops.test_routed_attention import NAMES, restrictions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not dispatch.triton_installed(), reason="needs triton"),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("time", [1, 63, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_equal_the_reference(name: str, time: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    row, position = (torch.rand(3, time) < 0.4).nonzero(as_tuple=True)
    options = restrictions(name, time, len(row))
    options = {
        key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    tensors = [
        torch.randn(len(row), 8, 64), torch.randn(3, time, 2, 64), torch.randn(3, time, 2, 64)
    ]  # fmt: skip
    upstream = torch.randn(len(row), 8, 64)
    results = []
    for backend, kind in (("reference", torch.float32), ("triton", dtype)):
        leaves = [x.to(dtype).to(kind).cuda().requires_grad_() for x in tensors]
        out = routed_attention(*leaves, row=row.cuda(), position=position.cuda(), **options, backend=backend)
        if not out.requires_grad:
            return  # no query was drawn
        gradients = torch.autograd.grad(out, leaves, upstream.to(kind).cuda())
        results.append([out.detach(), *gradients])
    for mine, theirs in zip(results[1], results[0], strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert (mine.float() - theirs).abs().max() < TOLERANCE[dtype] * scale


def test_auto_takes_the_kernel() -> None:
    assert dispatch._choose(torch.zeros(1, 1, 8).cuda(), torch.zeros(1, 1, 1, 8).cuda(), 0.0)[0] == "triton"
