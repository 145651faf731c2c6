"""The algebra of one span of chunks of the gated delta rule, forward and backward; ``chunked.py`` has the formulas.

Letters besides the usual: N chunks in the span, G = B·H, C tokens in a chunk. A span's tensors are laid out
(N, G, ...), so that each chunk is one contiguous batch of matrices.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.ops.gated_delta.inputs import NORM_EPSILON

SMALLEST_CHUNK = 16  # also the block that the inverse starts from


class Span(NamedTuple):
    """What the tokens of a span are to each other and to the carried state, whatever the values."""

    both: Float[Tensor, "N G 2*C K"]  # queries over keys, of unit length if asked for
    norms: Float[Tensor, "N G 2*C 1"] | None  # their inverse lengths, if asked for
    rates: Float[Tensor, "N G C 1"]  # β
    pair: Float[Tensor, "N G C C"]  # D
    carried: Float[Tensor, "N G C 1"]  # d
    scores: Float[Tensor, "N G 2 C C"]  # P and A
    seen: Float[Tensor, "N G 2*C K"]  # diag(d) over queries and keys
    kept: Float[Tensor, "N G C K"]  # diag(e) K


class SpanGradients(NamedTuple):
    """Gradients of a span's inputs, in chunks, and of the state that it began with."""

    query: Float[Tensor, "N G C K"]
    key: Float[Tensor, "N G C K"]
    value: Float[Tensor, "N G C V"]
    log_decay: Float[Tensor, "N G C 1"]
    beta: Float[Tensor, "N G C 1"]
    state: Float[Tensor, "G K V"]


def prepare(
    query: Float[Tensor, "B T H K"],
    key: Float[Tensor, "B T H K"],
    log_decay: Float[Tensor, "B T H"],
    beta: Float[Tensor, "B T H"],
    resets: Bool[Tensor, "B T"] | None,
    *,
    size: int,
    normalize: bool,
    dtype: torch.dtype,
) -> Span:
    """Compute all that depends neither on values nor on states, in chunks of ``size`` tokens."""
    norms = None
    both = torch.cat([to_chunks(t, size, dtype) for t in (query, key)], 2)
    if normalize:
        norms = (both * both).sum(-1, keepdim=True).add_(NORM_EPSILON).rsqrt_()
        both *= norms
    keys = both[:, :, size:]
    rates = to_chunks(beta.unsqueeze(-1), size, dtype)
    running = to_chunks(log_decay.unsqueeze(-1), size, dtype).clamp_(min=smallest_log(dtype)).cumsum(2)
    pair = (running - running.mT).exp_().tril_()  # above the diagonal exp overflows, and is overwritten
    carried = running.exp_()
    if resets is not None:
        documents = to_chunks(resets[..., None, None], size, torch.int32).cumsum(2)
        documents = documents.repeat_interleave(query.shape[2], 1)
        pair *= documents == documents.mT
        carried *= documents == 0
    scores = _product(both, keys.mT).unflatten(2, (2, size))
    scores *= pair.unsqueeze(2)
    scores[:, :, 1].tril_(-1)
    seen = (both.unflatten(2, (2, size)) * carried.unsqueeze(2)).flatten(2, 3)
    kept = keys * pair[:, :, -1, :, None]
    return Span(both, norms, rates, pair, carried, scores, seen, kept)


def scan(
    span: Span,
    values: Float[Tensor, "N G C V"],
    inverse: Float[Tensor, "N G C C"],
    state: Float[Tensor, "G K V"],
) -> tuple[Float[Tensor, "N G C V"], Float[Tensor, "N G C V"], Float[Tensor, "N+1 G K V"]]:
    """Carry the state through a span; return R (in place of the values), X, and the states around each chunk."""
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


def outputs(
    span: Span, writes: Float[Tensor, "N G C V"], states: Float[Tensor, "N+1 G K V"]
) -> Float[Tensor, "N G C V"]:
    """Read, unscaled, for each query: from the state before its chunk, and from the chunk's writes up to it."""
    result = _product(span.seen[:, :, : span.rates.shape[2]], states[:-1])
    result.flatten(0, 1).baddbmm_(span.scores[:, :, 0].flatten(0, 1), writes.flatten(0, 1))
    return result


def gradients(
    span: Span,
    remainder: Float[Tensor, "N G C V"],
    writes: Float[Tensor, "N G C V"],
    states: Float[Tensor, "N+1 G K V"],
    inverse: Float[Tensor, "N G C C"],
    grad_result: Float[Tensor, "N G C V"],
    grad_state: Float[Tensor, "G K V"],
) -> SpanGradients:
    """Go back through one span, given the gradients of its unscaled outputs and of the state after it."""
    size = span.rates.shape[2]
    both, norms, rates, pair, carried, scores, seen, kept = span
    keys = both[:, :, size:]

    # z = -(I + diag(β) A)^-T dX, minus the gradient of diag(β) R, lies under that of O: both meet X and S
    upstream = torch.cat((grad_result, torch.empty_like(grad_result)), 2)
    z = upstream[:, :, size:]
    grad_writes = _product(scores[:, :, 0].mT, grad_result)
    read = seen.clone()
    read[:, :, size:] *= rates
    read = read.mT.contiguous()
    solver = inverse.mT.neg()
    grad_states = torch.empty_like(states)
    grad_states[-1] = grad_state
    for n in range(remainder.shape[0] - 1, -1, -1):
        grad_writes[n].baddbmm_(kept[n], grad_states[n + 1])
        z[n].copy_(torch.bmm(solver[n], grad_writes[n]))
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

    grad_scores = grad_scores.flatten(2, 3).flatten(0, 1)
    grad_both.flatten(0, 1).baddbmm_(grad_scores, keys.flatten(0, 1))
    grad_kept.flatten(0, 1).baddbmm_(grad_scores.mT, both.flatten(0, 1))
    grad_both[:, :, size:] += grad_kept
    if norms is not None:  # through x / |x|
        grad_both -= both * (grad_both * both).sum(-1, keepdim=True)
        grad_both *= norms
    grad_decay = grad_running.flip(-1).cumsum(-1).flip(-1).unsqueeze(-1)
    return SpanGradients(
        grad_both[:, :, :size], grad_both[:, :, size:], z.neg(), grad_decay, grad_beta, grad_states[0]
    )


def smallest_log(dtype: torch.dtype) -> float:
    """A logarithm whose exponential is 0: clamping there loses nothing and keeps running sums precise."""
    return -750.0 if dtype == torch.float64 else -110.0


def to_chunks(tokens: Tensor, size: int, dtype: torch.dtype) -> Tensor:
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


def from_chunks(chunks: Tensor, out: Tensor) -> None:
    """Undo ``to_chunks``: copy (N, B·H, C, X) into (B, T, H, X)."""
    size, (batch, time, heads, _) = chunks.shape[2], out.shape
    full = time // size
    chunks = chunks.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4)
    if full:
        out[:, : full * size].unflatten(1, (full, size)).copy_(chunks[:, :full])
    if rest := time - full * size:
        out[:, full * size :].copy_(chunks[:, full, :rest])


def unit_lower_inverse(lower: Float[Tensor, "N G C C"]) -> Float[Tensor, "N G C C"]:
    """Invert I + ``lower`` (strictly lower triangular), doubling the size of the solved diagonal blocks.

    [[A, 0], [L, B]]^-1 = [[A^-1, 0], [-B^-1 L A^-1, B^-1]]; C is a power of two times the smallest block.
    """
    size, block = lower.shape[-1], SMALLEST_CHUNK
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


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply (N, G, ·, ·) matrices as one flat batch."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])
