"""Skip paths that have no closed form: a linear map as the start, then gradient descent."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

STEPS = 300
BATCH = 1024
START = 0.3
"""Standard deviation of what SiLU is given at first: it bends little there, so that the start is all but linear."""

RATE = 0.05
"""Step size at first, as a share of a matrix's own standard deviation; it falls to 0. START, RATE and STEPS were
tried on four layers of SmolLM2-135M."""

_FLOOR = 1e-12


def descended(
    states: Float[Tensor, "N D"],
    update: Float[Tensor, "N D"],
    weight: Float[Tensor, "N"],
    *,
    down: Float[Tensor, "D r"],
    up: Float[Tensor, "r D"],
    bias: Float[Tensor, "D"],
) -> tuple[Float[Tensor, "D r"], Float[Tensor, "r D"], Float[Tensor, "D"]]:
    """A, B and bias of SiLU(x A) B + bias, regressed on a layer's update from a linear map on.

    ``STEPS`` of Adam on rows that are drawn by their weight, the same ones in every call.

    Args:
        states: around the mean of the map.
        update: what is to be met.
        weight: of the rows.
        down, up, bias: the linear map.
    """
    # Inference tensors have no gradients; what is computed from them here has.
    with torch.inference_mode(False), torch.enable_grad():
        draws = torch.Generator(device=states.device).manual_seed(0)
        spread = (states @ down).std(dim=0)
        scale = START / spread.clamp_min(float(spread.max()) * 1e-4).clamp_min(_FLOOR)
        # Near 0 SiLU halves what it is given.
        starts = (down * scale, 2 * up / scale.unsqueeze(1), bias)
        parts = [start.detach().clone().requires_grad_() for start in starts]
        groups = [{"params": [part], "lr": RATE * float(part.detach().std())} for part in parts]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
        size = (update - bias).square().mean().clamp_min(_FLOOR)
        for _ in range(STEPS):
            rows = torch.multinomial(weight, BATCH, replacement=True, generator=draws)
            found = F.silu(states[rows] @ parts[0]) @ parts[1] + parts[2]
            loss = (found - update[rows]).square().mean() / size
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
        return parts[0].detach(), parts[1].detach(), parts[2].detach()
