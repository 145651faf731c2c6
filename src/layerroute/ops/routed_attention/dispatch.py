"""Choose the backend of routed attention, and say once which one runs."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.errors import UserError
from layerroute.ops.backends import announce, check_backend, report
from layerroute.ops.routed_attention.gathered import BlockPlan, gathered_routed_attention
from layerroute.ops.routed_attention.inputs import Intervals, check_shapes, intervals
from layerroute.ops.routed_attention.reference import reference_routed_attention


def _triton(query: Tensor, key: Tensor, value: Tensor, spans: Intervals, **options: Any) -> Tensor:
    if not triton_installed():
        raise UserError("the routed-attention backend 'triton' needs the package triton: pip install triton")
    from layerroute.ops.routed_attention.triton_kernel import obstacle, triton_routed_attention

    problem = obstacle(query, value, options["dropout"])
    if problem is not None:
        raise UserError(
            f"the routed-attention backend 'triton' cannot be used: {problem}; use auto or gathered"
        )
    return triton_routed_attention(query, key, value, spans, **options)


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": reference_routed_attention,
    "gathered": gathered_routed_attention,
    "triton": _triton,
}


@cache
def triton_installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def _choose(query: Tensor, value: Tensor, dropout: float) -> tuple[str, str]:
    """The backend that ``auto`` takes, and why."""
    if not query.is_cuda:
        return "gathered", "tensors on the CPU"
    if not triton_installed():
        return "gathered", "triton is not installed"
    from layerroute.ops.routed_attention.triton_kernel import obstacle

    problem = obstacle(query, value, dropout)
    return ("triton", "tensors on a GPU") if problem is None else ("gathered", f"not triton: {problem}")


def backend_report() -> dict[str, object]:
    """See ``ops.backends.report``. On a GPU ``auto`` may still take ``gathered`` for what the kernel cannot take."""
    obstacle = "triton is not installed" if not triton_installed() else None
    if obstacle is None and not torch.cuda.is_available():
        obstacle = "torch sees no GPU"
    return report(BACKENDS, plain="gathered", fast="triton", obstacle=obstacle)


def routed_attention(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    *,
    row: Int[Tensor, "N"],
    position: Int[Tensor, "N"],
    key_start: Int[Tensor, "B"] | None = None,
    window: int | None = None,
    documents: Int[Tensor, "B S"] | None = None,
    visible: Bool[Tensor, "N S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Float[Tensor, "N H V"]:
    """Causal softmax attention of queries gathered from anywhere in a batch, against all keys of their rows.

    ``out_i = softmax_s(scale · q_i·k_{row_i, s}) v_{row_i, s}`` over the keys s that query i may see: up to its own
    position, and as the optional arguments restrict it further. Attention of all queries costs about the share
    N / (B T) of full causal attention.

    Args:
        query: N gathered queries of H heads, sorted by row, and within a row by position.
        key, value: of all B rows. G heads, each shared by H / G heads of the queries.
        row: batch row of each query.
        position: index of each query's own key in its row.
        key_start: (B,) index of the first key that is not left padding.
        window: sliding window: a query sees the last ``window`` keys, its own among them.
        documents: (B, S) ids of packed documents, runs of equal numbers: a query sees its own document only.
        visible: (N, S) any further restriction.
        scale: of the scores; ``K ** -0.5`` if None.
        softcap: scores become ``softcap · tanh(score / softcap)`` (Gemma 2).
        dropout: of the attention weights.
        backend: ``auto`` (Triton's kernel on a GPU where it can run, else ``gathered``), ``reference``, ``gathered``
            or ``triton``. The choice is logged once, at INFO.

    Returns:
        (N, H, V) in the query's dtype. A query that may see no key gets zeros.

    Raises:
        ValueError: shapes that do not fit each other.
        UserError: an unknown backend, or one that cannot take these inputs.
    """
    spans = intervals(row, position, key_start=key_start, window=window, documents=documents)
    return attend_spans(
        query,
        key,
        value,
        spans,
        visible=visible,
        scale=scale,
        softcap=softcap,
        dropout=dropout,
        backend=backend,
    )


def attend_spans(
    query: Float[Tensor, "N H K"],
    key: Float[Tensor, "B S G K"],
    value: Float[Tensor, "B S G V"],
    spans: Intervals,
    *,
    visible: Bool[Tensor, "N S"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    backend: str = "auto",
    plan: BlockPlan | None = None,
) -> Float[Tensor, "N H V"]:
    """``routed_attention`` for intervals that are known already, and their ``plan`` if it has been made."""
    check_shapes(query, key, value, spans, visible)
    name, reason = _choose(query, value, dropout) if backend == "auto" else (backend, "asked for by name")
    check_backend("routed-attention", name, BACKENDS)
    if not torch.compiler.is_compiling():
        announce("routed attention", name, reason)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    planned = {} if name == "reference" else {"plan": plan}
    return BACKENDS[name](
        query, key, value, spans, visible=visible, scale=scale, softcap=softcap, dropout=dropout, **planned
    )
