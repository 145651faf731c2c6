"""The gated delta rule in chunks of tokens, for CPU and for CUDA without flash-linear-attention.

Within a chunk of C tokens, with G the running sum of the log decays and D_ij = exp(G_i - G_j) for j <= i in one
document (else 0), the writes X (C × V) of all tokens solve one triangular system (the WY form of DeltaNet, Yang et
al. 2024, arXiv:2406.06484, with the decay of arXiv:2412.06464)::

    R = V - diag(d) K S            d_i = exp(G_i), 0 after a reset: what token i still sees of the carried state S
    X = (I + diag(β) A)^-1 diag(β) R         A = strictly lower part of (K Kᵀ ∘ D)
    O = diag(d) Q S + P X                    P = Q Kᵀ ∘ D
    S ← d_C S + (diag(e) K)ᵀ X               e_j = D_Cj

so only R, X and S are sequential, over chunks. The backward pass is written by hand from the same quantities: the
loop keeps three products a chunk, the rest is batched over all chunks, and autograd would copy far more.

Every exponent is <= 0. The inverse is built from blocks, and not as a product of powers of A: with repeated keys
those powers grow like binomial coefficients while the inverse stays small.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerroute.ops.gated_delta.inputs import check_inputs, compute_dtype, document_resets
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule

CHUNK = 64
RECURRENT_BELOW = 8  # shorter calls (decoding) take the plain recurrence, which is faster there
_NORM_EPSILON = 1e-6
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

    Differentiable once, with respect to every float input, through the output and through the final state; no
    forward-mode and no second derivatives.
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
    dtype = compute_dtype(query, key, value, log_decay, beta, initial_state)
    if initial_state is None:
        initial_state = value.new_zeros(batch, heads, key_dim, value.shape[-1], dtype=dtype)
    resets = None if document_ids is None else document_resets(document_ids)
    scale = key_dim**-0.5 if scale is None else scale
    output, final_state = _ChunkedRule.apply(
        query, key, value, log_decay, beta, initial_state, resets, scale, normalize_qk, chunk
    )
    return output, final_state if output_final_state else None


class _ChunkedRule(torch.autograd.Function):
    """Layout inside: N chunks first, then G = B·H, so that each chunk is one contiguous batch of matrices."""

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
        scale: float,
        normalize: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        batch, time, heads, key_dim = query.shape
        value_dim = value.shape[-1]
        groups, dtype = batch * heads, compute_dtype(query, key, value, log_decay, beta, initial_state)
        size = min(chunk, max(_SMALLEST_BLOCK, 1 << (time - 1).bit_length()))
        count = -(-time // size)

        both = query.new_empty(count, batch, heads, 2 * size, key_dim, dtype=dtype)  # queries over keys
        _to_chunks(query, both[..., :size, :])
        _to_chunks(key, both[..., size:, :])
        both = both.view(count, groups, 2 * size, key_dim)
        norms = None
        if normalize:
            norms = torch.rsqrt((both * both).sum(-1, keepdim=True) + _NORM_EPSILON)
            both *= norms
        both[:, :, :size] *= scale
        remainder = query.new_empty(count, batch, heads, size, value_dim, dtype=dtype)
        _to_chunks(value, remainder)
        remainder = remainder.view(count, groups, size, value_dim)  # holds V, and R once S is known
        rates = _to_chunks(beta[..., None], beta.new_empty(count, batch, heads, size, 1, dtype=dtype))
        rates = rates.view(count, groups, size, 1)
        decay = _to_chunks(log_decay[..., None], beta.new_empty(count, batch, heads, size, 1, dtype=dtype))
        running = decay.clamp_(min=_smallest_log(dtype)).view(count, groups, size).cumsum(-1)
        segments = None
        if resets is not None:
            segments = resets.new_empty(count, batch, 1, size, 1, dtype=torch.int32)
            segments = _to_chunks(resets[..., None, None], segments).cumsum(-2)
            segments = segments.expand(-1, -1, heads, -1, -1).reshape(count, groups, size)
        pair, carried = _decays(running, segments)

        keys = both[:, :, size:]
        scores = _product(both, keys.mT).view(count, groups, 2, size, size)
        scores *= pair.unsqueeze(2)
        scores[:, :, 1].tril_(-1)
        inverse = _unit_lower_inverse(scores[:, :, 1] * rates)
        solver = inverse * rates.mT
        seen = both * torch.cat((carried, carried), -1).unsqueeze(-1)
        kept = (keys * pair[:, :, -1, :, None]).mT.contiguous()

        states = remainder.new_empty(count + 1, groups, key_dim, value_dim)
        states[0] = initial_state.reshape(groups, key_dim, value_dim)
        writes = torch.empty_like(remainder)
        for n in range(count):
            remainder[n].baddbmm_(seen[n, :, size:], states[n], alpha=-1)
            torch.bmm(solver[n], remainder[n], out=writes[n])
            torch.mul(states[n], carried[n, :, -1, None, None], out=states[n + 1])
            states[n + 1].baddbmm_(kept[n], writes[n])
        output = _product(seen[:, :, :size], states[:-1])
        output.flatten(0, 1).baddbmm_(scores[:, :, 0].flatten(0, 1), writes.flatten(0, 1))

        ctx.save_for_backward(
            both, norms, remainder, rates, running, segments, scores, inverse, writes, states, log_decay
        )
        ctx.shape = (batch, time, heads, key_dim, value_dim, size, count)
        ctx.scale = scale
        ctx.dtypes = [t.dtype for t in (query, key, value, log_decay, beta, initial_state)]
        ctx.set_materialize_grads(False)
        final_state = states[-1].view(batch, heads, key_dim, value_dim).clone()
        return _from_chunks(output, batch, time, value.dtype), final_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        both, norms, remainder, rates, running, segments, scores, inverse, writes, states, log_decay = ctx.saved_tensors
        batch, time, heads, key_dim, value_dim, size, count = ctx.shape
        groups = batch * heads
        dtype = both.dtype
        keys, attention = both[:, :, size:], scores[:, :, 0]
        pair, carried = _decays(running, segments)
        seen = both * torch.cat((carried, carried), -1).unsqueeze(-1)
        kept = keys * pair[:, :, -1, :, None]

        # upper half: the gradient of O; lower half: minus that of R before the rates (z below)
        upstream = both.new_empty(count, batch, heads, 2 * size, value_dim)
        if grad_output is None:
            upstream[..., :size, :].zero_()
        else:
            _to_chunks(grad_output, upstream[..., :size, :])
        upstream = upstream.view(count, groups, 2 * size, value_dim)
        grad_o, z = upstream[:, :, :size], upstream[:, :, size:]
        grad_writes = _product(attention.mT, grad_o)
        grad_states = both.new_empty(count + 1, groups, key_dim, value_dim)
        torch.bmm(
            seen[:, :, :size].mT.flatten(0, 1), grad_o.flatten(0, 1), out=grad_states[:-1].flatten(0, 1)
        )
        if grad_final is None:
            grad_states[-1].zero_()
        else:
            grad_states[-1] = grad_final.reshape(groups, key_dim, value_dim)
        read = (seen[:, :, size:] * rates).mT.contiguous()
        for n in range(count - 1, -1, -1):
            grad_writes[n].baddbmm_(kept[n], grad_states[n + 1])
            z[n].copy_(torch.bmm(inverse[n].mT, grad_writes[n]).neg_())
            grad_states[n].addcmul_(grad_states[n + 1], carried[n, :, -1, None, None])
            grad_states[n].baddbmm_(read[n], z[n])

        # pairs of tokens: the two score matrices
        grad_scores = _product(upstream, writes.mT).view(count, groups, 2, size, size)
        weighted = grad_scores * scores
        grad_beta = weighted[:, :, 1].sum(-1) - (z * remainder).sum(-1)
        weighted[:, :, 1] *= rates
        grad_scores[:, :, 1] *= rates
        z *= rates
        grad_value = z.neg()
        weighted = weighted.sum(2)
        grad_running = weighted.sum(-1) - weighted.sum(-2)
        grad_scores *= pair.unsqueeze(2)
        grad_scores[:, :, 1].tril_(-1)

        # each token against the carried state
        grad_both = _product(upstream, states[:-1].mT)
        through = (grad_both * seen).sum(-1)
        grad_running += through[..., :size]
        grad_running += through[..., size:]
        grad_both *= torch.cat((carried, carried), -1).unsqueeze(-1)
        grad_kept = _product(writes, grad_states[1:].mT)
        through = (grad_kept * kept).sum(-1)
        grad_running -= through
        grad_running[..., -1] += through.sum(-1)
        grad_running[..., -1] += (grad_states[1:] * states[:-1]).sum((-1, -2)) * carried[..., -1]
        grad_kept *= pair[:, :, -1, :, None]
        grad_both[:, :, size:] += grad_kept
        flat = grad_scores.view(count * groups, 2 * size, size)
        grad_both.flatten(0, 1).baddbmm_(flat, keys.flatten(0, 1))
        grad_both[:, :, size:] += _product(grad_scores.flatten(2, 3).mT, both)

        grad_both[:, :, :size] *= ctx.scale
        if norms is not None:
            along = both.clone()
            along[:, :, :size] /= ctx.scale
            grad_both -= along * (grad_both * along).sum(-1, keepdim=True)
            grad_both *= norms
        grad_decay = grad_running.flip(-1).cumsum(-1).flip(-1)
        grads = (
            _from_chunks(grad_both[:, :, :size], batch, time, ctx.dtypes[0]),
            _from_chunks(grad_both[:, :, size:], batch, time, ctx.dtypes[1]),
            _from_chunks(grad_value, batch, time, ctx.dtypes[2]),
            _from_chunks(grad_decay.unsqueeze(-1), batch, time, dtype).squeeze(-1),
            _from_chunks(grad_beta.unsqueeze(-1), batch, time, ctx.dtypes[4]).squeeze(-1),
        )
        grad_log_decay = grads[3].masked_fill_(log_decay < _smallest_log(dtype), 0.0).to(ctx.dtypes[3])
        grad_initial = grad_states[0].view(batch, heads, key_dim, value_dim).to(ctx.dtypes[5])
        return *grads[:3], grad_log_decay, grads[4], grad_initial, None, None, None, None


def _smallest_log(dtype: torch.dtype) -> float:
    """A logarithm whose exponential is 0: clamping there loses nothing and keeps running sums precise."""
    return -750.0 if dtype == torch.float64 else -110.0


def _to_chunks(tokens: Tensor, out: Tensor) -> Tensor:
    """Copy (B, T, H, X) into ``out`` (N, B, H, C, X), zeros behind the last token: they change no state."""
    size, time = out.shape[3], tokens.shape[1]
    full = time // size
    if full:
        whole = tokens[:, : full * size].unflatten(1, (full, size))
        out[:full].copy_(whole.permute(1, 0, 3, 2, 4))
    if time > full * size:
        rest = time - full * size
        out[full, :, :, :rest].copy_(tokens[:, full * size :].transpose(1, 2))
        out[full, :, :, rest:].zero_()
    return out


def _from_chunks(chunks: Tensor, batch: int, time: int, dtype: torch.dtype) -> Tensor:
    """Undo ``_to_chunks`` for (N, B·H, C, X): a contiguous (B, T, H, X) in ``dtype``."""
    count, groups, size, width = chunks.shape
    chunks = chunks.unflatten(1, (batch, groups // batch)).permute(1, 0, 3, 2, 4)
    out = chunks.new_empty(batch, time, groups // batch, width, dtype=dtype)
    full = time // size
    if full:
        out[:, : full * size].unflatten(1, (full, size)).copy_(chunks[:, :full])
    if time > full * size:
        out[:, full * size :].copy_(chunks[:, full, : time - full * size])
    return out


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (N, G, ·, ·) matrices as one flat batch."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _decays(
    running: Float[Tensor, "N G C"], segments: Int[Tensor, "N G C"] | None
) -> tuple[Float[Tensor, "N G C C"], Float[Tensor, "N G C"]]:
    """Decay from token j to token i (0 unless j <= i in one document), and from before the chunk to token i."""
    pair = (running.unsqueeze(-1) - running.unsqueeze(-2)).clamp_(max=0).exp_().tril_()
    carried = running.exp()
    if segments is not None:
        same: Bool[Tensor, "N G C C"] = segments.unsqueeze(-1) == segments.unsqueeze(-2)
        pair *= same
        carried *= segments == 0
    return pair, carried


def _unit_lower_inverse(lower: Float[Tensor, "N G C C"]) -> Float[Tensor, "N G C C"]:
    """Invert I + ``lower`` (strictly lower triangular), doubling the size of solved diagonal blocks.

    [[A, 0], [L, B]]^-1 = [[A^-1, 0], [-B^-1 L A^-1, B^-1]]. The C must be a power of two times the smallest block.
    """
    shape, size = lower.shape, lower.shape[-1]
    matrices = lower.flatten(0, 1)
    block = min(_SMALLEST_BLOCK, size)

    def blocks(width: int, row: int, column: int, step: int) -> Tensor:
        grid = matrices.unflatten(1, (-1, width)).unflatten(3, (-1, width))
        chosen = [grid[:, i + row, :, i + column] for i in range(0, size // width, step)]
        return torch.stack(chosen, 1).flatten(0, 1)

    identity = torch.eye(block, dtype=lower.dtype, device=lower.device)
    diagonal = blocks(block, 0, 0, 1)
    solved = torch.linalg.solve_triangular(
        diagonal, identity.expand_as(diagonal), upper=False, unitriangular=True
    )
    while block < size:
        upper, under = solved.unflatten(0, (-1, 2)).unbind(1)
        corner = torch.bmm(torch.bmm(under, blocks(block, 1, 0, 2)), upper)
        solved = torch.zeros(corner.shape[0], 2 * block, 2 * block, dtype=lower.dtype, device=lower.device)
        solved[:, :block, :block] = upper
        solved[:, block:, :block] = corner.neg_()
        solved[:, block:, block:] = under
        block *= 2
    return solved.view(shape)
