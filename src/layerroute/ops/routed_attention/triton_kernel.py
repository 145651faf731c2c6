"""Routed attention as Triton kernels, forward and backward: flash attention whose blocks have key bounds of their own.

A block of gathered queries reads keys from its first query's start to its last query's stop; a block of keys, in
backward, reads the queries that see any of it. Both bounds come from the intervals, so that causality, left padding,
sliding windows and packed documents cost nothing beyond them (online softmax: Dao 2023, arXiv:2307.08691).
"""

# Kernels are Triton's language: untyped, constants in capitals, one load a line.
# ruff: noqa: E501, N803
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.ops.routed_attention.gathered import BlockPlan
from layerroute.ops.routed_attention.inputs import Intervals


@triton.jit
def _scores(q, k, visible, scale, softcap, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """Scaled and capped scores of a block, and the slope of the cap."""
    s = tl.dot(q, k, input_precision=PRECISION) * scale
    slope = s * 0.0 + 1.0
    if HAS_SOFTCAP:
        tanh = 2.0 * tl.sigmoid(2.0 * s / softcap) - 1.0
        slope = 1.0 - tanh * tanh
        s = softcap * tanh
    return tl.where(visible, s, -1.0e30), slope


@triton.jit
def _block(block_ptr, start_ptr, stop_ptr, BLOCK_M: tl.constexpr):
    """Of this program's block: row, first and last key, queries, which of them there are, and what each sees."""
    mine = block_ptr + tl.program_id(0) * 5
    row = tl.load(mine).to(tl.int64)
    m = tl.load(mine + 1) + tl.arange(0, BLOCK_M)
    inside = m < tl.load(mine + 2)
    m = m.to(tl.int64)
    start = tl.load(start_ptr + m, mask=inside, other=0)
    stop = tl.load(stop_ptr + m, mask=inside, other=0)
    return row, tl.load(mine + 3), tl.load(mine + 4), m, inside, start, stop


@triton.jit
def _tile(ptr, n, stride, d, inside, D: tl.constexpr, TRANSPOSED: tl.constexpr = False):
    """Rows ``n`` (where ``inside``) and columns ``d`` (below D) of a matrix."""
    if TRANSPOSED:
        tile = tl.load(
            ptr + n[None, :] * stride + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0
        )
    else:
        tile = tl.load(
            ptr + n[:, None] * stride + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
        )
    return tile


@triton.jit
def _sees(visible_ptr, start, stop, m, n, inside, held, keys, HAS_VISIBLE: tl.constexpr):
    """Which of the keys ``n`` each of the queries ``m`` sees."""
    sees = (n[None, :] >= start[:, None]) & (n[None, :] < stop[:, None])
    if HAS_VISIBLE:
        allowed = tl.load(
            visible_ptr + m[:, None] * keys + n[None, :], mask=inside[:, None] & held[None, :], other=0
        )
        sees = sees & (allowed != 0)
    return sees


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, start_ptr, stop_ptr, visible_ptr, block_ptr,
    q_n, q_h, k_b, k_s, k_g, v_b, v_s, v_g, o_n, o_h, keys,
    scale, softcap,
    HEADS: tl.constexpr, REPEAT: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_VISIBLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row, low, high, m, inside, start, stop = _block(block_ptr, start_ptr, stop_ptr, BLOCK_M)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = _tile(q_ptr + head * q_h, m, q_n, d, inside, D)
    best = tl.full([BLOCK_M], -1.0e30, dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], dtype=tl.float32)
    k_base = k_ptr + row * k_b + (head // REPEAT) * k_g
    v_base = v_ptr + row * v_b + (head // REPEAT) * v_g
    for begin in range(low, high, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        held = n < high
        k = _tile(k_base, n, k_s, d, held, D, True)
        sees = _sees(visible_ptr, start, stop, m, n, inside, held, keys, HAS_VISIBLE)
        s, _ = _scores(q, k, sees, scale, softcap, HAS_SOFTCAP, PRECISION)
        higher = tl.maximum(best, tl.max(s, axis=1))
        p = tl.where(sees, tl.exp2((s - higher[:, None]) * 1.4426950408889634), 0.0)
        shrink = tl.exp2((best - higher) * 1.4426950408889634)
        total = total * shrink + tl.sum(p, axis=1)
        v = _tile(v_base, n, v_s, e, held, V)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        best = higher
    some = total > 0.0
    safe = tl.where(some, total, 1.0)
    out = tl.where(some[:, None], acc / safe[:, None], 0.0)
    tl.store(
        out_ptr + m[:, None] * o_n + head * o_h + e[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=inside[:, None] & (e < V)[None, :],
    )
    tl.store(lse_ptr + m * HEADS + head, tl.where(some, best + tl.log(safe), 0.0), mask=inside)


@triton.jit
def _backward_query(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, start_ptr, stop_ptr, visible_ptr, block_ptr,
    q_n, q_h, k_b, k_s, k_g, v_b, v_s, v_g, o_n, o_h, keys,
    scale, softcap,
    HEADS: tl.constexpr, REPEAT: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_VISIBLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    row, low, high, m, inside, start, stop = _block(block_ptr, start_ptr, stop_ptr, BLOCK_M)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = _tile(q_ptr + head * q_h, m, q_n, d, inside, D)
    grad = _tile(grad_ptr + head * o_h, m, o_n, e, inside, V)
    lse = tl.load(lse_ptr + m * HEADS + head, mask=inside, other=0.0)
    delta = tl.load(delta_ptr + m * HEADS + head, mask=inside, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    k_base = k_ptr + row * k_b + (head // REPEAT) * k_g
    v_base = v_ptr + row * v_b + (head // REPEAT) * v_g
    for begin in range(low, high, BLOCK_N):
        n = begin + tl.arange(0, BLOCK_N)
        held = n < high
        k = _tile(k_base, n, k_s, d, held, D, True)
        v = _tile(v_base, n, v_s, e, held, V, True)
        sees = _sees(visible_ptr, start, stop, m, n, inside, held, keys, HAS_VISIBLE)
        s, slope = _scores(q, k, sees, scale, softcap, HAS_SOFTCAP, PRECISION)
        p = tl.where(sees, tl.exp2((s - lse[:, None]) * 1.4426950408889634), 0.0)
        dp = tl.dot(grad, v, input_precision=PRECISION)
        ds = p * (dp - delta[:, None]) * slope
        dq += tl.dot(ds.to(k.dtype), tl.trans(k), input_precision=PRECISION)
    tl.store(
        dq_ptr + m[:, None] * (HEADS * D) + head * D + d[None, :],
        (dq * scale).to(dq_ptr.dtype.element_ty),
        mask=inside[:, None] & (d < D)[None, :],
    )


@triton.jit
def _backward_key(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, start_ptr, stop_ptr, visible_ptr, first_ptr, last_ptr,
    q_n, q_h, k_b, k_s, k_g, v_b, v_s, v_g, o_n, o_h, keys,
    scale, softcap,
    HEADS: tl.constexpr, REPEAT: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_VISIBLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part, group, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = row * tl.num_programs(0) + part
    first, last = tl.load(first_ptr + at), tl.load(last_ptr + at)
    n = part * BLOCK_N + tl.arange(0, BLOCK_N)
    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    held = n < keys
    k = _tile(k_ptr + row * k_b + group * k_g, n, k_s, d, held, D)
    v = _tile(v_ptr + row * v_b + group * v_g, n, v_s, e, held, V)
    dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_V], dtype=tl.float32)
    for begin in range(first, last, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        inside = m < last
        m = m.to(tl.int64)
        start = tl.load(start_ptr + m, mask=inside, other=0)
        stop = tl.load(stop_ptr + m, mask=inside, other=0)
        sees = _sees(visible_ptr, start, stop, m, n, inside, held, keys, HAS_VISIBLE)
        for member in range(REPEAT):
            head = group * REPEAT + member
            q = _tile(q_ptr + head * q_h, m, q_n, d, inside, D)
            grad = _tile(grad_ptr + head * o_h, m, o_n, e, inside, V)
            lse = tl.load(lse_ptr + m * HEADS + head, mask=inside, other=0.0)
            delta = tl.load(delta_ptr + m * HEADS + head, mask=inside, other=0.0)
            s, slope = _scores(q, tl.trans(k), sees, scale, softcap, HAS_SOFTCAP, PRECISION)
            p = tl.where(sees, tl.exp2((s - lse[:, None]) * 1.4426950408889634), 0.0)
            dv += tl.dot(tl.trans(p).to(grad.dtype), grad, input_precision=PRECISION)
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            ds = p * (dp - delta[:, None]) * slope
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=PRECISION)
    groups = tl.num_programs(1)
    to = (row * keys + n[:, None]) * groups + group
    tl.store(
        dk_ptr + to * D + d[None, :],
        (dk * scale).to(dk_ptr.dtype.element_ty),
        mask=held[:, None] & (d < D)[None, :],
    )
    tl.store(
        dv_ptr + to * V + e[None, :], dv.to(dv_ptr.dtype.element_ty), mask=held[:, None] & (e < V)[None, :]
    )


class _Tiles(NamedTuple):
    queries: int
    keys: int
    warps: int


@functools.cache
def _tiles(key_dim: int, half: bool) -> _Tiles:
    """Sizes that fit shared memory on GPUs since Ampere; not tuned further."""
    if not half:
        return _Tiles(32, 32, 4)
    return _Tiles(64, 64, 4) if key_dim <= 128 else _Tiles(32, 32, 4)


def obstacle(query: Tensor, value: Tensor, dropout: float) -> str | None:
    """Why these kernels cannot take these inputs, or None."""
    if dropout:
        return "it has no dropout of attention weights"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it does not compute in {query.dtype}"
    if max(query.shape[-1], value.shape[-1]) > 256:
        return "its heads are wider than 256"
    return None


class _RoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: Intervals,
        visible: Tensor | None,
        scale: float,
        softcap: float | None,
        plan: BlockPlan | None,
    ) -> Tensor:
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        count, heads = query.shape[:2]
        out = query.new_empty(count, heads, value.shape[-1])
        lse = torch.empty(count, heads, dtype=torch.float32, device=query.device)
        start, stop = (x.to(torch.int32).contiguous() for x in (spans.start, spans.stop))
        mask = start if visible is None else visible.to(torch.uint8).contiguous()
        options = _options(query, key, value, softcap, visible)
        blocks = _blocks(spans, options["BLOCK_M"], plan, query.device)
        ctx.save_for_backward(query, key, value, out, lse, start, stop, mask, blocks, spans.row)
        ctx.scale, ctx.softcap, ctx.options = scale, softcap, options
        _forward[(blocks.shape[0], heads)](
            query, key, value, out, lse, start, stop, mask, blocks,
            *_strides(query, key, value, out), key.shape[1], scale, softcap or 1.0, **options,
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, start, stop, mask, blocks, row = ctx.saved_tensors
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).sum(dim=-1).contiguous()
        dq = torch.empty_like(query, memory_format=torch.contiguous_format)
        dk = torch.empty_like(key, memory_format=torch.contiguous_format)
        dv = torch.empty_like(value, memory_format=torch.contiguous_format)
        options, heads = ctx.options, query.shape[1]
        batch, keys, groups = key.shape[:3]
        rest = (*_strides(query, key, value, grad), keys, ctx.scale, ctx.softcap or 1.0)
        _backward_query[(blocks.shape[0], heads)](
            query, key, value, grad, lse, delta, dq, start, stop, mask, blocks, *rest, **options
        )
        parts = triton.cdiv(keys, options["BLOCK_N"])
        first, last = _readers(row, start, stop, batch, keys, options["BLOCK_N"], parts)
        _backward_key[(parts, groups, batch)](
            query, key, value, grad, lse, delta, dk, dv, start, stop, mask, first, last, *rest, **options
        )
        return dq, dk, dv, None, None, None, None, None


def _options(
    query: Tensor, key: Tensor, value: Tensor, softcap: float | None, visible: Tensor | None
) -> dict[str, Any]:
    half = query.dtype != torch.float32
    tiles = _tiles(query.shape[-1], half)
    return {
        "HEADS": query.shape[1],
        "REPEAT": query.shape[1] // key.shape[2],
        "D": query.shape[-1],
        "V": value.shape[-1],
        "BLOCK_D": max(16, triton.next_power_of_2(query.shape[-1])),
        "BLOCK_V": max(16, triton.next_power_of_2(value.shape[-1])),
        "BLOCK_M": tiles.queries,
        "BLOCK_N": tiles.keys,
        "HAS_SOFTCAP": softcap is not None,
        "HAS_VISIBLE": visible is not None,
        "PRECISION": "tf32" if half else "ieee",
        "num_warps": tiles.warps,
    }


def _strides(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> tuple[int, ...]:
    return (*query.stride()[:2], *key.stride()[:3], *value.stride()[:3], *out.stride()[:2])


def _blocks(spans: Intervals, size: int, plan: BlockPlan | None, device: torch.device) -> Tensor:
    """(blocks, 5) row, first and last query, first and last key of blocks of at most ``size`` queries."""
    if plan is None or plan.block != size:
        plan = BlockPlan(spans if plan is None else plan.spans, block=size)
    bounds = [[b.row, b.first, b.last, b.start, b.stop] for b in plan.blocks]
    return torch.tensor(bounds, dtype=torch.int32).to(device, non_blocking=True)


def _readers(
    row: Tensor, start: Tensor, stop: Tensor, batch: int, keys: int, size: int, parts: int
) -> tuple[Tensor, Tensor]:
    """For each row and block of keys, the stretch of queries that see any of it.

    Starts and stops rise with the position within a row, so that both ends are found by bisection.
    """
    stride = keys + 2
    rows = torch.arange(batch, device=row.device)[:, None] * stride
    begin = torch.arange(parts, device=row.device) * size
    end = (begin + size).clamp_max(keys)
    first = torch.searchsorted(row * stride + stop, (rows + begin).flatten(), right=True)
    last = torch.searchsorted(row * stride + start, (rows + end).flatten())
    return first.to(torch.int32), last.to(torch.int32)


def triton_routed_attention(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    spans: Intervals,
    *,
    visible: Bool[Tensor, "N S"] | None = None,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    plan: BlockPlan | None = None,
) -> Float[Tensor, "N H V"]:
    """See ``routed_attention``. On a CPU only under Triton's interpreter (``TRITON_INTERPRET=1``), for tests.

    Raises:
        ValueError: inputs that ``obstacle`` names.
    """
    problem = obstacle(query, value, dropout)
    if problem is not None:
        raise ValueError(f"the Triton kernel of routed attention cannot be used: {problem}")
    if query.shape[0] == 0:
        return query.new_empty(0, query.shape[1], value.shape[-1])
    out: Tensor = _RoutedAttention.apply(query, key, value, spans, visible, scale, softcap, plan)
    return out
