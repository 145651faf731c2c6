"""Next-token cross-entropy over real tokens only, and distillation from the same model at full depth."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100


def shift_labels(labels: Int[Tensor, "B T"], *, ignore_index: int = IGNORE) -> Int[Tensor, "B T"]:
    """Labels moved one to the left, so that position t holds what the logits at t must predict; the last is ignored."""
    return F.pad(labels[:, 1:], (0, 1), value=ignore_index)


def token_cross_entropy(
    logits: Float[Tensor, "B T N"], targets: Int[Tensor, "B T"], *, ignore_index: int = IGNORE
) -> Float[Tensor, "B T"]:
    """Cross-entropy in nats of each token, in fp32; 0 where ``targets`` is ``ignore_index``. No shift is made."""
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return flat.view(targets.shape)


def cross_entropy(
    logits: Float[Tensor, "B T N"],
    targets: Int[Tensor, "B T"],
    *,
    ignore_index: int = IGNORE,
    count: int | Tensor | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the targets that are not ignored. No shift is made.

    Args:
        count: divide by this number instead (tokens in all micro-batches of an accumulated step).

    A batch without a single target gives 0 with a graph, not NaN.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=ignore_index, reduction="sum"
    )
    number = (targets != ignore_index).sum() if count is None else torch.as_tensor(count)
    return total / number.to(total.device).clamp_min(1)


def distillation_loss(
    student: Float[Tensor, "B T N"],
    teacher: Float[Tensor, "B T N"],
    valid: Bool[Tensor, "B T"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """T^2 * KL(teacher || student) in nats, averaged over valid tokens (Hinton et al. 2015).

    Args:
        teacher: logits of the full model, detached here.
        temperature: T, applied to both.
    """
    log_student = F.log_softmax(student[valid].float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher[valid].detach().float() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence / max(int(log_student.shape[0]), 1)
