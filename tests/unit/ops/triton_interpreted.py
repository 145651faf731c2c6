"""Triton's kernels of routed attention under its interpreter, on a CPU, at odd sizes.

Not collected by name: ``test_routed_attention_triton.py`` runs this file in a process of its own, since the
interpreter must be chosen before Triton is imported.
"""

import pytest
import torch

from layerroute.errors import UserError
from layerroute.ops.routed_attention import BlockPlan, attend_spans, intervals, routed_attention


def inputs(batch, time, heads, groups, key, value, rate, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    row, position = (torch.rand(batch, time) < rate).nonzero(as_tuple=True)
    query = torch.randn(len(row), heads, key, dtype=dtype)
    keys, values = (
        torch.randn(batch, time, groups, key, dtype=dtype),
        torch.randn(batch, time, groups, value, dtype=dtype),
    )
    return [query, keys, values], {"row": row, "position": position}


def restrictions(name: str, batch: int, time: int, queries: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "causal": {},
        "padded": {"key_start": torch.tensor([0, time // 3, time - 1][:batch])},
        "window": {"window": 5},
        "packed": {"documents": (torch.arange(time) * 4 // time).expand(batch, -1)},
        "visible": {"visible": torch.rand(queries, time, generator=generator) < 0.5},
        "softcap": {"softcap": 3.0, "window": 9, "scale": 0.7},
        "all": {
            "key_start": torch.tensor([0, time // 5, time // 2][:batch]),
            "window": 7,
            "documents": (torch.arange(time) // 11).expand(batch, -1),
            "visible": torch.rand(queries, time, generator=generator) < 0.8,
        },
    }[name]


def results(backend, tensors, where, options, upstream=None):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = routed_attention(*leaves, **where, **options, backend=backend)
    if upstream is None:
        torch.manual_seed(3)
        upstream = torch.randn_like(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)], upstream


@pytest.mark.parametrize("name", ["causal", "padded", "window", "packed", "visible", "softcap", "all"])
@pytest.mark.parametrize(
    ("batch", "time", "heads", "groups", "key", "value", "rate"),
    [(3, 37, 4, 2, 24, 16, 0.5), (2, 70, 3, 1, 16, 40, 0.15), (1, 1, 2, 2, 8, 8, 1.0)],
)
def test_outputs_and_gradients_equal_the_reference(name, batch, time, heads, groups, key, value, rate):
    tensors, where = inputs(batch, time, heads, groups, key, value, rate)
    options = restrictions(name, batch, time, len(where["row"]))
    expected, upstream = results("reference", tensors, where, options)
    actual, _ = results("triton", tensors, where, options, upstream)
    for kind, mine, theirs in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        assert (mine - theirs).abs().max() < 2e-5 * max(1.0, float(theirs.abs().max())), kind


def test_all_tokens_are_causal_attention():
    tensors, where = inputs(2, 45, 2, 2, 16, 16, 2.0)
    (actual, *_), _ = results("triton", tensors, where, {})
    query = tensors[0].view(2, 45, 2, 16).transpose(1, 2)
    key, value = (x.transpose(1, 2) for x in tensors[1:])
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (actual.view(2, 45, 2, 16).transpose(1, 2) - expected).abs().max() < 1e-5


def test_half_precision_is_close():
    tensors, where = inputs(2, 40, 4, 2, 16, 16, 0.6, dtype=torch.float16)
    expected, upstream = results("reference", tensors, where, {})
    actual, _ = results("triton", tensors, where, {}, upstream)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == torch.float16  # the interpreter knows no bfloat16
        assert (mine.float() - theirs.float()).abs().max() < 0.03 * float(theirs.float().abs().max())


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
        assert (actual - expected).abs().max() < 1e-5


def test_no_queries_at_all():
    tensors, where = inputs(2, 9, 2, 1, 16, 16, 0.0)
    assert routed_attention(*tensors, **where, backend="triton").shape == (0, 2, 16)


def test_refusals_are_named():
    tensors, where = inputs(1, 5, 2, 1, 16, 16, 1.0)
    with pytest.raises(UserError, match="no dropout"):
        routed_attention(*tensors, **where, dropout=0.1, backend="triton")
    with pytest.raises(UserError, match=r"does not compute in torch.float64"):
        routed_attention(*(x.double() for x in tensors), **where, backend="triton")
