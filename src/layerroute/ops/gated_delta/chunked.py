"""The gated delta rule in chunks of tokens, for CPU and for CUDA without flash-linear-attention.

Within a chunk of C tokens, with G the running sum of the log decays and D_ij = exp(G_i - G_j) for j <= i in one
document (else 0), the writes X (C × V) of all tokens solve one triangular system (the WY form of DeltaNet, Yang et
al. 2024, arXiv:2406.06484, with the decay of arXiv:2412.06464)::

    R = V - diag(d) K S                     d_i = exp(G_i), 0 after a reset: how much of the carried state S is left
    X = (I + diag(β) A)^-1 diag(β) R        A = strictly lower part of K Kᵀ ∘ D
    O = diag(d) Q S + P X                   P = Q Kᵀ ∘ D
    S ← d_C S + (diag(e) K)ᵀ X              e_j = D_Cj

so only R, X and S go chunk by chunk; the rest is batched over a span of chunks that fits the cache. The backward
pass is written by hand: it keeps the inputs, the inverses and one state a span, and computes the rest again (as
flash-linear-attention does), because on a CPU fresh memory costs more than these small products.

Every exponent is <= 0. The inverse is put together from blocks and not from powers of A: with repeated keys those
powers grow like binomial coefficients, while the inverse stays small.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerroute.ops.gated_delta.inputs import NORM_EPSILON, check_inputs, compute_dtype, document_resets
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule

CHUNK = 32
RECURRENT_BELOW = 8  # shorter calls (decoding) take the plain recurrence, which is faster there
_SPAN_ELEMENTS = 2**19  # of one (tokens × key dim) operand: a span's handful of operands stay in cache
_SMALLEST_BLOCK = 16


def chunked_gated_delta_rule(
    query: Float[Tensor, "B T H K"],
    key: Float[Tensor, "B T H K"],
    value: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    *,
    initial_state: Float[Tensor, "B H K V"] | None = None,
    output_final_state: bool = False,
    document_ids: Int[Tensor, "B T"] | None = None,
    scale: float | None = None,
    normalize_qk: bool = False,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"] | None]:
    """Run the rule chunk by chunk; see ``dispatch.gated_delta_rule`` for arguments and result.

    ``chunk`` is a power of two, at least 16. Differentiable once, with respect to every float input, through the
    output and through the final state; no forward-mode and no second derivatives.
    """
    check_inputs(query, key, value, log_decay, beta, initial_state, document_ids)
    batch, time, heads, key_dim = query.shape
    if time < RECURRENT_BELOW or query.numel() == 0 or value.numel() == 0:
        return recurrent_gated_delta_rule(
            query,
            key,
            value,
            log_decay,
            beta,
            initial_state=initial_state,
            output_final_state=output_final_state,
            document_ids=document_ids,
            scale=scale,
            normalize_qk=normalize_qk,
        )
    if initial_state is None:
        dtype = compute_dtype(query, key, value, log_decay, beta)
        initial_state = value.new_zeros(batch, heads, key_dim, value.shape[-1], dtype=dtype)
    resets = None if document_ids is None else document_resets(document_ids)
    scale = key_dim**-0.5 if scale is None else scale
    size = min(chunk, max(_SMALLEST_BLOCK, 1 << (time - 1).bit_length()))
    output, final_state = _ChunkedRule.apply(
        query,
        key,
        value,
        log_decay,
        beta,
        initial_state,
        resets,
        _Options(size, scale, normalize_qk, torch.is_grad_enabled()),
    )
    return output, final_state if output_final_state else None


class _Options(NamedTuple):
    size: int  # tokens in a chunk
    scale: float
    normalize: bool
    differentiable: bool

    def spans(self, query: Tensor) -> list[slice]:
        """Cut T into spans of whole chunks."""
        batch, time, heads, key_dim = query.shape
        tokens = max(1, _SPAN_ELEMENTS // (batch * heads * key_dim * self.size)) * self.size
        return [slice(start, min(start + tokens, time)) for start in range(0, time, tokens)]


class _Span(NamedTuple):
    """What a span's tokens are to each other and to the carried state. N chunks, G = B·H, C tokens a chunk."""

    both: Tensor  # (N, G, 2C, K) queries over keys, of unit length if asked for
    norms: Tensor | None  # (N, G, 2C, 1) inverse lengths
    rates: Tensor  # (N, G, C, 1) beta
    pair: Tensor  # (N, G, C, C) D
    carried: Tensor  # (N, G, C, 1) d
    scores: Tensor  # (N, G, 2, C, C) P and A
    seen: Tensor  # (N, G, 2C, K) diag(d) over queries and keys
    kept: Tensor  # (N, G, C, K) diag(e) K


class _ChunkedRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        beta: Tensor,
        initial_state: Tensor,
        resets: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(query, key, value, log_decay, beta, initial_state)
        size = options.size
        output = torch.empty_like(value, memory_format=torch.contiguous_format)
        state = initial_state.to(dtype).flatten(0, 1)
        starts, inverses = [], []
        for tokens in options.spans(query):
            span = _prepare(query, key, log_decay, beta, resets, tokens, options, dtype)
            inverse = _unit_lower_inverse(span.scores[:, :, 1] * span.rates)
            starts.append(state)
            inverses.append(inverse)
            _, writes, states = _scan(span, _to_chunks(value[:, tokens], size, dtype), inverse, state)
            result = _product(span.seen[:, :, :size], states[:-1])
            result.flatten(0, 1).baddbmm_(span.scores[:, :, 0].flatten(0, 1), writes.flatten(0, 1))
            _from_chunks(result.mul_(options.scale), output[:, tokens])
            state = states[-1].clone()
        if options.differentiable:
            ctx.save_for_backward(
                query, key, value, log_decay, beta, initial_state, resets, *starts, *inverses
            )
            ctx.options = options
            ctx.set_materialize_grads(False)
        return output, state.view_as(initial_state)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        query, key, value, log_decay, beta, initial_state, resets, *kept = ctx.saved_tensors
        starts, inverses = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        options, dtype = ctx.options, inverses[0].dtype
        size = options.size
        inputs = (query, key, value, log_decay, beta)
        grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]
        if grad_final is None:
            grad_state = torch.zeros_like(starts[0])
        else:
            grad_state = grad_final.to(dtype).flatten(0, 1)
        for index in reversed(range(len(starts))):
            tokens = options.spans(query)[index]
            span = _prepare(query, key, log_decay, beta, resets, tokens, options, dtype)
            values = _to_chunks(value[:, tokens], size, dtype)
            remainder, writes, states = _scan(span, values, inverses[index], starts[index])
            if grad_output is None:
                grad_result = torch.zeros_like(writes)
            else:
                grad_result = _to_chunks(grad_output[:, tokens], size, dtype).mul_(options.scale)
            pieces, grad_state = _span_gradients(
                span, remainder, writes, states, inverses[index], grad_result, grad_state
            )
            for piece, grad in zip(pieces, grads, strict=True):
                _from_chunks(piece, (grad if grad.ndim == 4 else grad.unsqueeze(-1))[:, tokens])
        grads[3].masked_fill_(log_decay < _smallest_log(dtype), 0.0)
        return *grads, grad_state.view_as(initial_state).to(initial_state.dtype), None, None


def _prepare(
    query: Tensor,
    key: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    resets: Tensor | None,
    tokens: slice,
    options: _Options,
    dtype: torch.dtype,
) -> _Span:
    """Compute all that does not depend on values or states."""
    size, norms = options.size, None
    both = torch.cat([_to_chunks(t[:, tokens], size, dtype) for t in (query, key)], 2)
    if options.normalize:
        norms = (both * both).sum(-1, keepdim=True).add_(NORM_EPSILON).rsqrt_()
        both *= norms
    keys = both[:, :, size:]
    rates = _to_chunks(beta[:, tokens, :, None], size, dtype)
    running = _to_chunks(log_decay[:, tokens, :, None], size, dtype)
    running = running.clamp_(min=_smallest_log(dtype)).cumsum(2)
    pair = (running - running.mT).clamp_(max=0).exp_().tril_()
    carried = running.exp_()
    if resets is not None:
        documents = _to_chunks(resets[:, tokens, None, None], size, torch.int32).cumsum(2)
        documents = documents.repeat_interleave(query.shape[2], 1)
        pair *= documents == documents.mT
        carried *= documents == 0
    scores = _product(both, keys.mT).unflatten(2, (2, size))
    scores *= pair.unsqueeze(2)
    scores[:, :, 1].tril_(-1)
    seen = (both.unflatten(2, (2, size)) * carried.unsqueeze(2)).flatten(2, 3)
    kept = keys * pair[:, :, -1, :, None]
    return _Span(both, norms, rates, pair, carried, scores, seen, kept)


def _scan(span: _Span, values: Tensor, inverse: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the state through a span; return R (in place of the values), X, and the N + 1 states."""
    size = span.rates.shape[2]
    solver = inverse * span.rates.mT
    kept = span.kept.mT.contiguous()
    states = state.new_empty(values.shape[0] + 1, *state.shape)
    states[0] = state
    writes = torch.empty_like(values)
    for n in range(values.shape[0]):
        values[n].baddbmm_(span.seen[n, :, size:], states[n], alpha=-1)
        torch.bmm(solver[n], values[n], out=writes[n])
        torch.mul(states[n], span.carried[n, :, -1:], out=states[n + 1])
        states[n + 1].baddbmm_(kept[n], writes[n])
    return values, writes, states


def _span_gradients(
    span: _Span,
    remainder: Tensor,
    writes: Tensor,
    states: Tensor,
    inverse: Tensor,
    grad_result: Tensor,
    grad_state: Tensor,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Go back through one span.

    Returns:
        the gradients of query, key, value, log decay and beta, all in chunks; that of the state before the span.
    """
    size = span.rates.shape[2]
    both, norms, rates, pair, carried, scores, seen, kept = span
    keys = both[:, :, size:]

    # z = -(I + diag(β) A)^-T dX, the negative gradient of diag(β) R, is kept under that of O: both meet X and S
    upstream = torch.cat((grad_result, torch.empty_like(grad_result)), 2)
    z = upstream[:, :, size:]
    grad_writes = _product(scores[:, :, 0].mT, grad_result)
    read = seen.clone()
    read[:, :, size:] *= rates
    read = read.mT.contiguous()
    solver = inverse.mT
    grad_states = torch.empty_like(states)
    grad_states[-1] = grad_state
    for n in range(remainder.shape[0] - 1, -1, -1):
        grad_writes[n].baddbmm_(kept[n], grad_states[n + 1])
        torch.neg(torch.bmm(solver[n], grad_writes[n]), out=z[n])
        torch.mul(grad_states[n + 1], carried[n, :, -1:], out=grad_states[n])
        grad_states[n].baddbmm_(read[n], upstream[n])

    # pairs of tokens in a chunk
    grad_scores = _product(upstream, writes.mT).unflatten(2, (2, size))
    weighted = grad_scores * scores
    grad_beta = weighted[:, :, 1].sum(-1, keepdim=True) - (z * remainder).sum(-1, keepdim=True)
    weighted[:, :, 1] *= rates
    weighted = weighted.sum(2)
    grad_running = weighted.sum(-1) - weighted.sum(-2)
    grad_scores[:, :, 1] *= rates
    grad_scores *= pair.unsqueeze(2)
    grad_scores[:, :, 1].tril_(-1)

    # tokens against the carried state
    z *= rates
    grad_both = _product(upstream, states[:-1].mT)
    grad_running += (grad_both * seen).sum(-1).unflatten(2, (2, size)).sum(2)
    grad_both.unflatten(2, (2, size)).mul_(carried.unsqueeze(2))
    grad_kept = _product(writes, grad_states[1:].mT)
    through = (grad_kept * kept).sum(-1)
    grad_running -= through
    grad_running[..., -1] += through.sum(-1)
    grad_running[..., -1] += (grad_states[1:] * states[:-1]).sum((-1, -2)) * carried[:, :, -1, 0]
    grad_kept *= pair[:, :, -1, :, None]

    grad_both.flatten(0, 1).baddbmm_(grad_scores.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1))
    grad_kept.flatten(0, 1).baddbmm_(grad_scores.flatten(2, 3).mT.flatten(0, 1), both.flatten(0, 1))
    grad_query, grad_key = grad_both[:, :, :size], grad_both[:, :, size:]
    grad_key += grad_kept
    if norms is not None:  # through x / |x|
        grad_both -= both * (grad_both * both).sum(-1, keepdim=True)
        grad_both *= norms
    grad_decay = grad_running.flip(-1).cumsum(-1).flip(-1).unsqueeze(-1)
    return (grad_query, grad_key, z.neg(), grad_decay, grad_beta), grad_states[0]


def _smallest_log(dtype: torch.dtype) -> float:
    """A logarithm whose exponential is 0: clamping there loses nothing and keeps running sums precise."""
    return -750.0 if dtype == torch.float64 else -110.0


def _to_chunks(tokens: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Copy (B, T, H, X) to (N, B·H, C, X), with zeros behind the last token: they change no state."""
    batch, time, heads, width = tokens.shape
    full = time // size
    out = tokens.new_empty(-(-time // size), batch, heads, size, width, dtype=dtype)
    if full:
        whole = tokens[:, : full * size].unflatten(1, (full, size))
        out[:full].copy_(whole.permute(1, 0, 3, 2, 4))
    if rest := time - full * size:
        out[full, :, :, :rest].copy_(tokens[:, full * size :].transpose(1, 2))
        out[full, :, :, rest:].zero_()
    return out.flatten(1, 2)


def _from_chunks(chunks: Tensor, out: Tensor) -> None:
    """Undo ``_to_chunks``: copy (N, B·H, C, X) into (B, T, H, X)."""
    size, (batch, time, heads, _) = chunks.shape[2], out.shape
    full = time // size
    chunks = chunks.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4)
    if full:
        out[:, : full * size].unflatten(1, (full, size)).copy_(chunks[:, :full])
    if rest := time - full * size:
        out[:, full * size :].copy_(chunks[:, full, :rest])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (N, G, ·, ·) matrices as one flat batch."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _unit_lower_inverse(lower: Float[Tensor, "N G C C"]) -> Float[Tensor, "N G C C"]:
    """Invert I + ``lower`` (strictly lower triangular), doubling the size of the solved diagonal blocks.

    [[A, 0], [L, B]]^-1 = [[A^-1, 0], [-B^-1 L A^-1, B^-1]]; C is a power of two times the smallest block.
    """
    size, block = lower.shape[-1], min(_SMALLEST_BLOCK, lower.shape[-1])
    matrices = lower.flatten(0, 1)

    def blocks(width: int, below: int, step: int) -> Tensor:
        grid = matrices.unflatten(2, (-1, width)).unflatten(1, (-1, width))
        return torch.stack([grid[:, i + below, :, i] for i in range(0, size // width, step)], 1).flatten(0, 1)

    diagonal = blocks(block, 0, 1)
    identity = torch.eye(block, dtype=lower.dtype, device=lower.device).expand_as(diagonal)
    solved = torch.linalg.solve_triangular(diagonal, identity, upper=False, unitriangular=True)
    while block < size:
        first, second = solved.unflatten(0, (-1, 2)).unbind(1)
        corner = torch.bmm(torch.bmm(second, blocks(block, 1, 2)), first)
        solved = lower.new_zeros(corner.shape[0], 2 * block, 2 * block)
        solved[:, :block, :block] = first
        solved[:, block:, :block] = corner.neg_()
        solved[:, block:, block:] = second
        block *= 2
    return solved.view_as(lower)
