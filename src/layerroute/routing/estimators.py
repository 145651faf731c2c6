"""From a router's logits to a hard choice that trains: gradient estimators for discrete routing.

All are deterministic at inference: the choice is the argmax of the thresholded logits and the gate its one-hot.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from layerroute.errors import UserError, nearest

ESTIMATORS = ("gumbel_st", "sigmoid_st", "selected", "soft", "reinforce")
"""Names that ``RoutingConfig.estimator`` takes."""


class Surrogate(NamedTuple):
    """Where the gradient of a straight-through choice is taken, and how wide: a cut and a unit of margins, by site."""

    threshold: Float[Tensor, "R"]
    unit: Float[Tensor, "R"]


class Estimate(NamedTuple):
    """``probabilities`` (B T R P), ``choice`` (B T R) and ``gate`` (B T R P) of a RouteDecision."""

    probabilities: Float[Tensor, "B T R P"]
    choice: Int[Tensor, "B T R"]
    gate: Float[Tensor, "B T R P"]


STRAIGHT_THROUGH = ("gumbel_st", "sigmoid_st")
"""Estimators whose forward is the choice and whose backward is that of a soft one."""

SPARSE_ESTIMATORS = ("selected", "reinforce")
"""Estimators whose gradient needs nothing from the path that was not chosen."""


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise of the shape, dtype and device of ``like``."""
    # -log(Exponential(1)) is Gumbel(0, 1), and unlike -log(-log(u)) it cannot meet log(0) at both ends.
    return -torch.empty_like(like).exponential_().clamp_min_(torch.finfo(like.dtype).tiny).log_()


def training_noise(name: str, logits: Tensor, *, exploration: bool = True) -> Tensor | None:
    """The noise that the estimator ``name`` adds to its logits in training, or None if it adds none."""
    noisy = name in ("gumbel_st", "reinforce") or (name == "selected" and exploration)
    return gumbel_noise(logits) if noisy else None


def estimate(
    name: str,
    logits: Float[Tensor, "B T R P"],
    *,
    training: bool,
    temperature: float | Float[Tensor, ""] = 1.0,
    threshold: Float[Tensor, "R"] | None = None,
    noise: Float[Tensor, "B T R P"] | None = None,
    forced: Int[Tensor, "B T R"] | None = None,
    surrogate: Surrogate | None = None,
) -> Estimate:
    """Choose a path for every token and site, with a gate that carries gradients to the logits.

    Args:
        name: one of ``ESTIMATORS``.

            - ``gumbel_st``: y = softmax((logits + Gumbel noise) / temperature); hard one-hot of y in forward, the
              gradient of y in backward (Jang et al. 2016, straight-through).
            - ``sigmoid_st``: the same without noise.
            - ``selected``: the gate of the chosen path is p / stop_gradient(p), all others are exactly 0 with no
              gradient. Only the chosen path's output is needed, so training can be sparse. Like the other
              straight-through estimators it is biased.
            - ``soft``: the gate is the mixture itself in training (for analysis); hard at inference.
            - ``reinforce``: the choice is sampled and the gate carries no gradient; use
              ``objectives.policy_gradient``.
        logits: unnormalised, computed in fp32.
        training: False removes noise and sampling.
        temperature: of the training-time softmax; it does not touch ``probabilities``.
        threshold: by site, in logit units: the last path is chosen only if its logit exceeds the others by more
            than this. 0 (default) is argmax. Ties go to the cheaper path.
        noise: from ``training_noise``; ignored at inference. With noise the choice is a sample (Gumbel-max).
        forced: choices to take in place of the router's own; the gate is then the one for these choices.
        surrogate: of straight-through estimators: their soft part has its middle and its width from here, whatever
            threshold the choice is made at. Default: the threshold, and logits as they are.

    Raises:
        UserError: for an unknown name.
    """
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}.{nearest(name, ESTIMATORS)}")
    probabilities = logits.softmax(dim=-1)
    paths = logits.shape[-1]
    shifted = _shifted(logits, threshold)
    if not training:
        choice = shifted.argmax(dim=-1) if forced is None else forced
        return Estimate(probabilities, choice, F.one_hot(choice, paths).to(logits.dtype))

    perturbed = shifted if noise is None else shifted + noise
    choice = perturbed.argmax(dim=-1) if forced is None else forced
    hard = F.one_hot(choice, paths).to(logits.dtype)
    if name == "reinforce":
        return Estimate(probabilities, choice, hard)
    if name == "selected":
        soft = (shifted / temperature).softmax(dim=-1)
        # p / stop_gradient(p) is 1 with the gradient of log p; written so that forward is exactly 1.
        log_p = soft.clamp_min(torch.finfo(soft.dtype).tiny).log()
        return Estimate(probabilities, choice, hard * (1 + (log_p - log_p.detach())))
    if surrogate is not None:
        perturbed = _shifted(logits if noise is None else logits + noise, surrogate.threshold)
        perturbed = perturbed / surrogate.unit.to(logits.dtype)[:, None]
    soft = (perturbed / temperature).softmax(dim=-1)
    if name == "soft":
        return Estimate(probabilities, choice, soft)
    return Estimate(probabilities, choice, hard + (soft - soft.detach()))


def _shifted(
    logits: Float[Tensor, "B T R P"], threshold: Float[Tensor, "R"] | None
) -> Float[Tensor, "B T R P"]:
    if threshold is None:
        return logits
    return torch.cat([logits[..., :-1], logits[..., -1:] - threshold.to(logits.dtype)[:, None]], dim=-1)


class _CentredGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(valid)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (valid,) = ctx.saved_tensors
        weight = valid[..., None, None].to(grad.dtype)
        common = (grad * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)
        return (grad - common) * weight, None


def centred_gradient(
    logits: Float[Tensor, "B T R P"], valid: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T R P"]:
    """The logits themselves; on the way back their gradient loses its mean over valid tokens, by site and path.

    What is left says which tokens should run rather than others, and nothing about how many.
    """
    return _CentredGradient.apply(logits, valid)
