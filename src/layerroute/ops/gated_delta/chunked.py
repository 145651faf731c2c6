"""The gated delta rule in chunks of tokens, for CPU and for CUDA without flash-linear-attention.

Within a chunk of C tokens, with G the running sum of the log decays and D_ij = exp(G_i - G_j) for j <= i in one
document (else 0), the writes X (C × V) of all tokens solve one triangular system (the WY form of DeltaNet, Yang
et al. 2024, arXiv:2406.06484, with the decay of arXiv:2412.06464)::

    R = V - diag(d) K S                     d_i = exp(G_i), 0 after a reset: what is left of the carried state S
    X = (I + diag(β) A)^-1 diag(β) R        A = strictly lower part of K Kᵀ ∘ D
    O = diag(d) Q S + P X                   P = Q Kᵀ ∘ D
    S ← d_C S + (diag(e) K)ᵀ X              e_j = D_Cj

so only R, X and S go chunk by chunk; the rest is batched over a span of chunks that fits the cache. The backward
pass is written by hand: it keeps the inputs, the inverses and one state a span, and computes the rest again (as
flash-linear-attention does), because on a CPU fresh memory costs more than these small products.

Every exponent that is used is <= 0. The inverse is put together from blocks and not from powers of A, which grow like
binomial coefficients where keys repeat: 32 equal keys with β = 0.97 put that inverse off by 4 in fp32.

Under ``torch.compile`` forward and backward are one opaque operator each: traced, the loop over chunks would unroll
and take minutes to compile for every new length.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from layerroute.ops.gated_delta import chunk_math
from layerroute.ops.gated_delta.inputs import check_inputs, compute_dtype, document_resets, without_autocast
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule

CHUNK = 32
RECURRENT_BELOW = 5  # shorter calls (decoding) take the plain recurrence, which is faster there
_CPU_SPAN = 2**17  # elements of one (tokens × key dim) operand: a span's handful of operands stays in cache
_DEVICE_SPAN = 2**24  # a device would rather have few launches than small operands


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
    output and through the final state; no forward-mode and no second derivatives. Autocast does not reach inside.
    """
    check_inputs(query, key, value, log_decay, beta, initial_state, document_ids)
    if chunk < chunk_math.SMALLEST_CHUNK or chunk & (chunk - 1):
        raise ValueError(f"chunk is {chunk}; it must be a power of two, at least {chunk_math.SMALLEST_CHUNK}")
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
    scale = key_dim**-0.5 if scale is None else float(scale)
    size = min(chunk, max(chunk_math.SMALLEST_CHUNK, 1 << (time - 1).bit_length()))
    inputs = _Inputs(query, key, value, log_decay, beta, initial_state, resets)
    if torch.compiler.is_compiling():
        output, final_state, _, _ = _forward_operator(list(inputs[:6]), resets, size, scale, normalize_qk)
    else:
        output, final_state = _ChunkedRule.apply(*inputs, size, scale, normalize_qk, torch.is_grad_enabled())
    return output, final_state if output_final_state else None


class _Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor
    initial_state: Tensor
    resets: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(*self[:6])

    def chunks(self, size: int) -> int:
        return -(-self.query.shape[1] // size)

    def span(self, size: int) -> int:
        """How many chunks are worked on at a time."""
        batch, _, heads, key_dim = self.query.shape
        elements = _CPU_SPAN if self.query.device.type == "cpu" else _DEVICE_SPAN
        return max(1, elements // (batch * heads * key_dim * size))

    def prepare(self, tokens: slice, size: int, normalize: bool) -> chunk_math.Span:
        query, key, log_decay, beta = (
            t[:, tokens] for t in (self.query, self.key, self.log_decay, self.beta)
        )
        resets = None if self.resets is None else self.resets[:, tokens]
        return chunk_math.prepare(
            query, key, log_decay, beta, resets, size=size, normalize=normalize, dtype=self.dtype
        )


def _forward(
    inputs: _Inputs, size: int, scale: float, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, final state, and for the backward pass the state before each span and all inverses."""
    value, dtype, step = inputs.value, inputs.dtype, inputs.span(size)
    count, groups = inputs.chunks(size), value.shape[0] * value.shape[2]
    output = torch.empty_like(value, memory_format=torch.contiguous_format)
    inverses = value.new_empty(count, groups, size, size, dtype=dtype)
    state = inputs.initial_state.to(dtype).flatten(0, 1)
    starts = []
    with without_autocast(value.device):
        for first in range(0, count, step):
            tokens = slice(first * size, (first + step) * size)
            span = inputs.prepare(tokens, size, normalize)
            inverse = chunk_math.unit_lower_inverse(span.scores[:, :, 1] * span.rates)
            values = chunk_math.to_chunks(value[:, tokens], size, dtype)
            _, writes, states = chunk_math.scan(span, values, inverse, state)
            result = chunk_math.outputs(span, writes, states).mul_(scale)
            chunk_math.from_chunks(result, output[:, tokens])
            inverses[first : first + step] = inverse
            starts.append(state)
            state = states[-1]
    final_state = state.clone().view_as(inputs.initial_state)
    return output, final_state, torch.stack(starts), inverses


def _backward(
    inputs: _Inputs,
    starts: Tensor,
    inverses: Tensor,
    grad_output: Tensor | None,
    grad_final: Tensor | None,
    size: int,
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key, value, log decay, beta and initial state, each in its dtype."""
    value, dtype, step = inputs.value, inputs.dtype, inputs.span(size)
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs[:5]]
    grad_state = torch.zeros_like(starts[0]) if grad_final is None else grad_final.to(dtype).flatten(0, 1)
    with without_autocast(value.device):
        for index in reversed(range(starts.shape[0])):
            chunks = slice(index * step, (index + 1) * step)
            tokens = slice(chunks.start * size, chunks.stop * size)
            span = inputs.prepare(tokens, size, normalize)
            values = chunk_math.to_chunks(value[:, tokens], size, dtype)
            remainder, writes, states = chunk_math.scan(span, values, inverses[chunks], starts[index])
            if grad_output is None:
                grad_result = torch.zeros_like(writes)
            else:
                grad_result = chunk_math.to_chunks(grad_output[:, tokens], size, dtype).mul_(scale)
            *pieces, grad_state = chunk_math.gradients(
                span, remainder, writes, states, inverses[chunks], grad_result, grad_state
            )
            for piece, grad in zip(pieces, grads, strict=True):
                chunk_math.from_chunks(piece, (grad if grad.ndim == 4 else grad.unsqueeze(-1))[:, tokens])
    grads[3].masked_fill_(inputs.log_decay < chunk_math.smallest_log(dtype), 0.0)
    grad_initial = grad_state.view_as(inputs.initial_state).to(inputs.initial_state.dtype)
    return grads[0], grads[1], grads[2], grads[3], grads[4], grad_initial


class _ChunkedRule(torch.autograd.Function):
    """The eager form: its products are seen by ``FlopCounterMode`` and the profiler."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs, (*options, differentiable) = _Inputs(*arguments[:7]), arguments[7:]
        output, final_state, starts, inverses = _forward(inputs, *options)
        if differentiable:
            ctx.save_for_backward(*inputs, starts, inverses)
            ctx.options = options
            ctx.set_materialize_grads(False)
        return output, final_state

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *inputs, starts, inverses = ctx.saved_tensors
        grads = _backward(_Inputs(*inputs), starts, inverses, grad_output, grad_final, *ctx.options)
        return *grads, None, None, None, None, None


@torch.library.custom_op("layerroute::chunked_gated_delta", mutates_args=())
def _forward_operator(
    tensors: list[Tensor], resets: Tensor | None, size: int, scale: float, normalize: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _forward(_Inputs._make((*tensors, resets)), size, scale, normalize)


@_forward_operator.register_fake
def _(
    tensors: list[Tensor], resets: Tensor | None, size: int, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = _Inputs._make((*tensors, resets))
    value, initial_state = inputs.value, inputs.initial_state
    count, step, dtype = inputs.chunks(size), inputs.span(size), inputs.dtype
    groups = value.shape[0] * value.shape[2]
    return (
        torch.empty_like(value, memory_format=torch.contiguous_format),
        value.new_empty(initial_state.shape, dtype=dtype),
        value.new_empty(-(-count // step), groups, *initial_state.shape[2:], dtype=dtype),
        value.new_empty(count, groups, size, size, dtype=dtype),
    )


@torch.library.custom_op("layerroute::chunked_gated_delta_backward", mutates_args=())
def _backward_operator(
    tensors: list[Tensor],
    resets: Tensor | None,
    starts: Tensor,
    inverses: Tensor,
    grad_output: Tensor | None,
    grad_final: Tensor | None,
    size: int,
    scale: float,
    normalize: bool,
) -> list[Tensor]:
    inputs = _Inputs._make((*tensors, resets))
    return list(_backward(inputs, starts, inverses, grad_output, grad_final, size, scale, normalize))


@_backward_operator.register_fake
def _(tensors: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, resets, *ctx.options = inputs
    ctx.save_for_backward(*tensors, resets, *output[2:])


def _operator_backward(
    ctx: Any, grad_output: Tensor | None, grad_final: Tensor | None, *_: Any
) -> tuple[list[Tensor] | None, ...]:
    *tensors, resets, starts, inverses = ctx.saved_tensors
    grads = _backward_operator(tensors, resets, starts, inverses, grad_output, grad_final, *ctx.options)
    return grads, None, None, None, None


torch.library.register_autograd(
    "layerroute::chunked_gated_delta", _operator_backward, setup_context=_setup_context
)


def gated_delta_flops(
    time: int,
    *,
    heads: int,
    key_dim: int,
    value_dim: int,
    chunk: int = CHUNK,
    block: int = chunk_math.SMALLEST_CHUNK,
) -> float:
    """Forward FLOPs of the chunked rule over one sequence of ``time`` tokens.

    Counts the matrix products of ``chunked.py`` (scores of queries and keys, block inverse, reads and writes of the
    state, output); the triangular solve of the smallest blocks, element-wise work and the short-call recurrence of
    decoding are left out.

    Args:
        chunk: tokens a chunk; shorter sequences use the next power of two.
        block: smallest block of the inverse.
    """
    size = min(chunk, max(block, 1 << (time - 1).bit_length()))
    inverse = 0
    width = block
    while width < size:
        inverse += 2 * size * width * width
        width *= 2
    pairs = 4 * size * size * (key_dim + value_dim)
    state = 6 * size * key_dim * value_dim
    return float(-(-time // size) * heads * (pairs + state + inverse))
