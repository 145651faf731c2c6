"""Choose the backend of the gated delta rule, and say once which one runs and why."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.ops.backends import announce, check_backend, report
from layerroute.ops.gated_delta import fla
from layerroute.ops.gated_delta.chunked import chunked_gated_delta_rule
from layerroute.ops.gated_delta.fla import fla_gated_delta_rule
from layerroute.ops.gated_delta.reference import recurrent_gated_delta_rule

Backend = Callable[..., tuple[Tensor, Tensor | None]]
BACKENDS: dict[str, Backend] = {
    "reference": recurrent_gated_delta_rule,
    "chunked": chunked_gated_delta_rule,
    "fla": fla_gated_delta_rule,
}


def gated_delta_rule(
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
    backend: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"] | None]:
    """Apply the gated delta rule (Gated DeltaNet, arXiv:2412.06464) along T.

    Per batch row and head, from state S (K × V)::

        S_t = exp(log_decay_t) S_{t-1}
        S_t = S_t + k_t (beta_t (v_t - k_tᵀ S_t))ᵀ
        o_t = scale · q_tᵀ S_t

    A token with ``beta = 0`` and ``log_decay = 0`` leaves the state exactly as it was: that is how padding and
    tokens of another path are masked out (their output is still computed, and means nothing).

    Args:
        query, key: any length T >= 0; the number of heads equals that of ``value`` (no grouping).
        log_decay: logarithm of the decay, <= 0. Decays below e^-110 in fp32 (e^-750 in fp64) are zero.
        beta: strength of the write, in [0, 1] in Gated DeltaNet.
        initial_state: what the first token finds; zeros if None.
        output_final_state: also return the state after the last token.
        document_ids: the state is cleared before each token whose id differs from the previous token's. The
            first token continues ``initial_state``.
        scale: multiplies the output; ``K ** -0.5`` if None.
        normalize_qk: scale each query and key to unit length first.
        backend: ``auto`` (flash-linear-attention where it can run, else ``chunked``), ``reference``, ``chunked``
            or ``fla``. The choice is logged once, at INFO.

    Returns:
        The output, in ``value``'s dtype, and the final state in fp32 (fp64 if an input is fp64) or None.
        Everything is computed in at least fp32, except by ``fla``, whose kernels multiply in the input's dtype.

    Raises:
        ValueError: shapes that do not fit each other.
        UserError: an unknown backend, or one that cannot take these inputs.
    """
    if backend == "auto":
        obstacle = fla.obstacle(query, value)
        name = "chunked" if obstacle else "fla"
        reason = obstacle or "CUDA tensors in half precision"
    else:
        check_backend("gated-delta", backend, BACKENDS)
        name, reason = backend, "asked for by name"
    if not torch.compiler.is_compiling():
        announce("gated delta rule", name, reason)
    return BACKENDS[name](
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


def backend_report() -> dict[str, object]:
    """See ``ops.backends.report``."""
    return report(BACKENDS, plain="chunked", fast="fla", obstacle=fla.unavailable_reason())
