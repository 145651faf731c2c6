"""Triton's kernels of routed attention agree with the reference at odd sizes: on a GPU, or interpreted on a CPU.

The interpreter rewrites the kernels: it must be chosen before Triton is imported, and finds only functions that nothing
wraps. ``tests/unit/ops/test_routed_attention_triton.py`` runs this file so.
"""

import os

import pytest
import torch

from layerroute.errors import UserError
from layerroute.ops.routed_attention import BlockPlan, attend_spans, dispatch, intervals, routed_attention
from tests.gpu.devices import CUDA, DEVICE, only_cuda
from tests.unit.ops.test_routed_attention import restrictions

interpreted = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("LAYERROUTE_NO_TYPECHECK") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dispatch.triton_installed(), reason="needs triton"),
    pytest.mark.skipif(
        not (CUDA or interpreted),
        reason="on a CPU with TRITON_INTERPRET=1 and LAYERROUTE_NO_TYPECHECK=1 alone",
    ),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# batch, time, heads, heads of keys, width of keys and of values, share of queries
SIZES = [(3, 37, 4, 2, 24, 16, 0.5), (3, 70, 3, 1, 16, 40, 0.15), (3, 1, 2, 2, 8, 8, 1.0)]
SIZES += [(3, 63, 8, 2, 64, 64, 0.4), (3, 1000, 8, 2, 128, 128, 0.4)] if CUDA else []
NAMES = ["causal", "padded", "window", "packed", "visible", "softcap", "scale", "all"]


def inputs(batch, time, heads, groups, key, value, rate, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    row, position = (torch.rand(batch, time) < rate).nonzero(as_tuple=True)
    shapes = [(len(row), heads, key), (batch, time, groups, key), (batch, time, groups, value)]
    tensors = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    return tensors, {"row": row.to(DEVICE), "position": position.to(DEVICE)}


def results(backend, tensors, where, options, upstream=None):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = routed_attention(*leaves, **where, **options, backend=backend)
    if upstream is None:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out))], upstream


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_equal_the_reference(name, sizes, dtype):
    if dtype == torch.float16 and (name, sizes) != ("causal", SIZES[0]):
        pytest.skip("one case shows float16")
    if dtype == torch.bfloat16 and not CUDA:
        pytest.skip("the interpreter knows no bfloat16")
    tensors, where = inputs(*sizes, dtype=dtype)
    options = restrictions(name, sizes[1], len(where["row"]))
    options = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in options.items()}
    expected, upstream = results("reference", [x.float() for x in tensors], where, options)
    actual, _ = results("triton", tensors, where, options, upstream)
    for kind, mine, theirs in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        assert mine.dtype == dtype
        assert (mine.float() - theirs).abs().max() < TOLERANCE[dtype] * max(1.0, float(theirs.abs().max())), (
            kind
        )


def test_all_tokens_are_causal_attention():
    tensors, where = inputs(2, 45, 2, 2, 16, 16, 2.0)
    (actual, *_), _ = results("triton", tensors, where, {})
    query = tensors[0].view(2, 45, 2, 16).transpose(1, 2)
    key, value = (x.transpose(1, 2) for x in tensors[1:])
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (actual.view(2, 45, 2, 16).transpose(1, 2) - expected).abs().max() < 1e-4


def test_strided_inputs_and_a_plan_of_another_size():
    tensors, where = inputs(2, 33, 4, 2, 16, 16, 0.5)
    query, key, value = tensors
    strided = [
        query,
        key.transpose(1, 2).contiguous().transpose(1, 2),
        torch.cat([value, value], -1)[..., :16],
    ]
    spans = intervals(**where)
    expected = attend_spans(query, key, value, spans, backend="reference")
    for plan in (None, BlockPlan(spans), BlockPlan(spans, block=7)):
        actual = attend_spans(*strided, spans, plan=plan, backend="triton")
        assert (actual - expected).abs().max() < 1e-4


def test_no_queries_at_all():
    tensors, where = inputs(2, 9, 2, 1, 16, 16, 0.0)
    assert routed_attention(*tensors, **where, backend="triton").shape == (0, 2, 16)


def test_refusals_are_named():
    tensors, where = inputs(1, 5, 2, 1, 16, 16, 1.0)
    with pytest.raises(UserError, match="no dropout"):
        routed_attention(*tensors, **where, dropout=0.1, backend="triton")
    with pytest.raises(UserError, match=r"does not compute in torch.float64"):
        routed_attention(*(x.double() for x in tensors), **where, backend="triton")


@only_cuda
def test_auto_takes_the_kernel():
    assert dispatch._choose(torch.zeros(1, 1, 8).cuda(), torch.zeros(1, 1, 1, 8).cuda(), 0.0)[0] == "triton"
