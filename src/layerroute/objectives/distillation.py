"""Knowledge distillation from the same model at full depth."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def distillation_loss(
    student: Float[Tensor, "B T N"],
    teacher: Float[Tensor, "B T N"],
    valid: Bool[Tensor, "B T"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """T^2 * KL(teacher || student) in nats, averaged over valid tokens (Hinton et al. 2015).

    Args:
        student: logits that take the gradient.
        teacher: logits of the full model, detached here.
        valid: positions that count.
        temperature: T, applied to both.
    """
    log_student = F.log_softmax(student[valid].float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher[valid].detach().float() / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * divergence / max(int(log_student.shape[0]), 1)
