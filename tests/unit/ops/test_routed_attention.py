"""Routed attention: the gathered backend against the reference, and the reference against torch's own attention."""

import pytest
import torch
import torch.nn.functional as F

from layerroute.errors import UserError
from layerroute.ops.routed_attention import BlockPlan, document_starts, intervals, routed_attention
from layerroute.ops.routed_attention.gathered import gathered_routed_attention
from layerroute.ops.routed_attention.inputs import check_shapes

BATCH, HEADS, GROUPS, KEY, VALUE = 3, 4, 2, 8, 6


def inputs(time: int, rate: float, seed: int = 0, dtype=torch.float64):
    torch.manual_seed(seed)
    run = torch.rand(BATCH, time) < rate
    row, position = run.nonzero(as_tuple=True)
    query = torch.randn(len(row), HEADS, KEY, dtype=dtype, requires_grad=True)
    key = torch.randn(BATCH, time, GROUPS, KEY, dtype=dtype, requires_grad=True)
    value = torch.randn(BATCH, time, GROUPS, VALUE, dtype=dtype, requires_grad=True)
    return query, key, value, {"row": row, "position": position}


def restrictions(name: str, time: int, queries: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "causal": {},
        "padded": {"key_start": torch.tensor([0, time // 3, time - 1])},
        "window": {"window": 5},
        "wide_window": {"window": 10 * time},
        "packed": {"documents": (torch.arange(time) * 4 // time).expand(BATCH, -1)},
        "visible": {"visible": torch.rand(queries, time, generator=generator) < 0.6},
        "softcap": {"softcap": 3.0, "window": 9},
        "scale": {"scale": 0.1},
        "all": {
            "key_start": torch.tensor([0, 2, 5]),
            "window": 7,
            "documents": (torch.arange(time) // 11).expand(BATCH, -1),
            "visible": torch.rand(queries, time, generator=generator) < 0.8,
        },
    }[name]


NAMES = ["causal", "padded", "window", "wide_window", "packed", "visible", "softcap", "scale", "all"]


@pytest.mark.parametrize("time", [1, 63, 200])
@pytest.mark.parametrize("name", NAMES)
def test_gathered_equals_reference_in_outputs_and_gradients(name, time):
    for rate in (0.1, 0.5, 1.0):
        query, key, value, where = inputs(time, rate)
        options = restrictions(name, time, len(query))
        results = []
        for backend in ("reference", "gathered"):
            out = routed_attention(query, key, value, **where, **options, backend=backend)
            torch.manual_seed(3)
            weight = torch.randn_like(out)
            # Where no query sees a key, nothing of the inputs is in the output.
            loss = (out * weight).sum() + 0 * (query.sum() + key.sum() + value.sum())
            results.append((out, *torch.autograd.grad(loss, (query, key, value))))
        for reference, gathered in zip(*results, strict=True):
            assert not reference.isnan().any()
            torch.testing.assert_close(gathered, reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5, 6], [1, 4], [0, 2, 3, 6], [5]])
def test_one_query_a_row(rows):
    """As in decoding, where rows without a query are in the batch too."""
    torch.manual_seed(0)
    key, value = torch.randn(7, 20, GROUPS, KEY), torch.randn(7, 20, GROUPS, VALUE)
    row = torch.tensor(rows)
    query = torch.randn(len(rows), HEADS, KEY)
    for options in ({}, {"key_start": torch.tensor([0, 3, 0, 19, 7, 2, 5])}, {"window": 4}):
        for position in (torch.full_like(row, 19), 19 - row, torch.full_like(row, 11)):
            results = [
                routed_attention(query, key, value, row=row, position=position, **options, backend=backend)
                for backend in ("reference", "gathered")
            ]
            torch.testing.assert_close(*results)


def test_all_queries_equal_causal_attention():
    query, key, value, where = inputs(50, 1.0)
    out = routed_attention(query, key, value, **where, backend="reference").view(BATCH, 50, HEADS, VALUE)
    dense = F.scaled_dot_product_attention(
        query.view(BATCH, 50, HEADS, KEY).transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        is_causal=True,
        enable_gqa=True,
    )
    torch.testing.assert_close(out, dense.transpose(1, 2))


def test_window_padding_and_documents_mean_what_they_say():
    """Against masks written down token by token."""
    time = 12
    query, key, value, where = inputs(time, 1.0)
    documents = torch.tensor([0] * 5 + [1] * 7).expand(BATCH, -1)
    key_start = torch.tensor([0, 2, 6])
    mask = torch.zeros(BATCH, time, time, dtype=torch.bool)
    for b in range(BATCH):
        for t in range(time):
            for s in range(time):
                mask[b, t, s] = (
                    s <= t and t - s < 4 and s >= key_start[b] and documents[b, s] == documents[b, t]
                )
    expected = routed_attention(query, key, value, **where, visible=mask.flatten(0, 1), backend="reference")
    for backend in ("reference", "gathered"):
        out = routed_attention(
            query, key, value, **where, window=4, key_start=key_start, documents=documents, backend=backend
        )
        torch.testing.assert_close(out, expected)


def test_queries_without_keys_get_zeros():
    query, key, value, where = inputs(9, 1.0)
    visible = torch.ones(len(query), 9, dtype=torch.bool)
    visible[4] = False
    for backend in ("reference", "gathered"):
        for softcap in (None, 2.0):
            out = routed_attention(
                query, key, value, **where, visible=visible, softcap=softcap, backend=backend
            )
            assert (out[4] == 0).all()
            assert (out[5] != 0).any()


def test_queries_that_all_stand_in_padding_get_zeros():
    query, key = torch.randn(2, HEADS, KEY), torch.randn(2, 6, GROUPS, KEY)
    where = {"row": torch.tensor([0, 1]), "key_start": torch.tensor([2, 5])}
    for position in ([0, 0], [1, 4]):
        for backend in ("reference", "gathered"):
            out = routed_attention(query, key, key, position=torch.tensor(position), backend=backend, **where)
            assert torch.equal(out, torch.zeros(2, HEADS, KEY))


def test_no_query_at_all():
    _, key, value, _ = inputs(9, 1.0)
    none = torch.zeros(0, dtype=torch.long)
    out = routed_attention(torch.zeros(0, HEADS, KEY, dtype=key.dtype), key, value, row=none, position=none)
    assert out.shape == (0, HEADS, VALUE)


def test_blocks_read_only_the_keys_they_can_see():
    position = torch.tensor([3, 10, 50, 60, 199, 5])
    row = torch.tensor([0, 0, 0, 0, 0, 2])
    blocks = BlockPlan(intervals(row, position), block=2).blocks
    assert [(b.row, b.start, b.stop) for b in blocks] == [(0, 0, 11), (0, 0, 61), (0, 0, 200), (2, 0, 6)]
    blocks = BlockPlan(intervals(row, position, window=4), block=1).blocks
    assert [(b.start, b.stop) for b in blocks] == [(0, 4), (7, 11), (47, 51), (57, 61), (196, 200), (2, 6)]


@pytest.mark.parametrize("block", [1, 7, 64])
def test_block_size_does_not_change_the_result(block):
    query, key, value, where = inputs(70, 0.6)
    spans = intervals(**where)
    expected = gathered_routed_attention(query, key, value, spans, scale=0.3)
    out = gathered_routed_attention(query, key, value, spans, scale=0.3, plan=BlockPlan(spans, block=block))
    torch.testing.assert_close(out, expected)


def test_dropout_drops():
    query, key, value, where = inputs(40, 1.0)
    for backend in ("reference", "gathered"):
        out = routed_attention(query, key, value, **where, dropout=0.5, backend=backend)
        assert not torch.allclose(out, routed_attention(query, key, value, **where, backend=backend))


def test_document_starts():
    documents = torch.tensor([[0, 0, 1, 1, 1, 0], [5, 5, 5, 5, 5, 5]])
    assert document_starts(documents).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]


def test_shapes_that_do_not_fit_are_refused():
    query, key, value, where = inputs(8, 1.0)
    with pytest.raises(ValueError, match="share"):
        routed_attention(query, key.repeat(1, 1, 3, 1)[:, :, :3], value.repeat(1, 1, 3, 1)[:, :, :3], **where)
    spans = intervals(**where)
    unchecked = getattr(check_shapes, "__wrapped__", check_shapes)  # before jaxtyping sees the shapes
    with pytest.raises(ValueError, match="visible"):
        unchecked(query, key, value, spans, torch.ones(len(query), 9, dtype=torch.bool))
    with pytest.raises(UserError, match="gathered"):
        routed_attention(query, key, value, **where, backend="gatherd")
