"""Holding a budget: thresholds that make the share of expensive tokens what was asked for.

Thresholds are in logit units, one a site: the expensive path is taken where its margin over the best other path
exceeds the threshold. They are buffers, saved with the model, and take no gradient.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

BUDGETS = ("none", "controller", "quantile")


def margins(logits: Float[Tensor, "B T R P"]) -> Float[Tensor, "B T R"]:
    """Logit of the last path less the best of the others: what a threshold is compared with."""
    return logits[..., -1] - logits[..., :-1].amax(dim=-1)


def all_reduced(counts: Tensor) -> Tensor:
    """``counts`` summed over the ranks of a distributed run (unchanged outside one)."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of ``value`` over the ranks of a distributed run, with the gradient of this rank's alone.

    Gradients are averaged over ranks afterwards, so that a function of this mean gets the gradient that it has over
    the whole batch.
    """
    total = all_reduced(value.detach())
    if total.data_ptr() == value.data_ptr():
        return value
    return value + (total / dist.get_world_size() - value.detach())


def quantile_threshold(
    margin: Float[Tensor, "B T R"], valid: Bool[Tensor, "B T"], rate: Float[Tensor, "R"]
) -> Float[Tensor, "R"]:
    """Thresholds that send the share ``rate`` of the valid tokens of this batch to the expensive path.

    At most ``round(rate * n)`` tokens exceed the threshold of a site (fewer only where margins tie).
    """
    values = margin[valid]  # (N, R)
    count = values.shape[0]
    if count == 0:
        return torch.zeros(margin.shape[-1], dtype=margin.dtype, device=margin.device)
    ordered = values.sort(dim=0, descending=True).values
    keep = (rate * count).round().long().clamp(0, count)
    # "exceeds" is strict: half-way between the last token kept and the first one dropped keeps exactly `keep`.
    above = ordered.gather(0, (keep - 1).clamp_min(0).unsqueeze(0)).squeeze(0)
    below = ordered.gather(0, keep.clamp_max(count - 1).unsqueeze(0)).squeeze(0)
    middle = below + (above - below) / 2
    middle = torch.where(keep == 0, ordered[0], middle)
    return torch.where(keep == count, ordered[-1] - 1, middle)


class Thresholds(nn.Module):
    """The thresholds of all sites, and how they are kept at the budget while training.

    Args:
        sites: R.
        budget: ``none`` (thresholds stay where they are: 0 is argmax), ``controller`` (after each training step
            threshold += step * sign(rate - target), the rate from counts summed over all ranks; cf. the
            loss-free balancing of Wang et al. 2024), or ``quantile`` (each training batch is cut at its own
            quantile, so the budget holds exactly; the running mean of these cuts serves at inference).
        step: of the controller, in logit units. Default 0.01.
        momentum: of the running mean of the quantile thresholds. Default 0.95.

    Attributes:
        spread: (R,) standard deviation of each site's margins on the text that thresholds were set on: the unit in
            which ``serve: rate`` moves them. 1 until it is known; 0 keeps a site from being moved.
    """

    value: Tensor
    updates: Tensor
    spread: Tensor

    def __init__(
        self, sites: int, *, budget: str = "none", step: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__()
        self.budget, self.step, self.momentum = budget, step, momentum
        self.register_buffer("value", torch.zeros(sites, dtype=torch.float32))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("spread", torch.ones(sites, dtype=torch.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}spread", torch.ones_like(self.spread))  # older files have none
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def for_batch(
        self,
        logits: Float[Tensor, "B T R P"],
        valid: Bool[Tensor, "B T"],
        rate: Float[Tensor, "R"],
        *,
        cut: bool,
        track: bool = True,
        noise: Float[Tensor, "B T R P"] | None = None,
    ) -> Float[Tensor, "R"]:
        """The thresholds to use on this batch: the saved ones, or with ``cut`` its own quantile.

        The batch is cut where its choices are made, on the noisy logits; the running mean, which moves with ``track``,
        follows the noise-free ones, because inference has no noise.
        """
        if not cut:
            return self.value.clone()
        clean = quantile_threshold(margins(logits), valid, rate)
        if not track:
            return clean
        mean = all_reduced(clean)
        if mean is not clean:
            mean = mean / dist.get_world_size()
        # Bias-corrected like Adam's moments: the first batch sets the value, later ones move it.
        self.updates += 1
        weight = (1 - self.momentum) / (1 - self.momentum ** self.updates.double())
        self.value += weight.float() * (mean.to(self.value) - self.value)
        return clean if noise is None else quantile_threshold(margins(logits + noise), valid, rate)

    @torch.no_grad()
    def update(self, counts: Int[Tensor, "R P"], rate: Float[Tensor, "R"]) -> None:
        """One step of the controller from the counts of a training batch (no-op for other budgets)."""
        if self.budget != "controller":
            return
        counts = all_reduced(counts).to(torch.float32)
        served = counts[:, -1] / counts.sum(dim=-1).clamp_min(1)
        self.value += self.step * torch.sign(served - rate.to(served))
        self.updates += 1
