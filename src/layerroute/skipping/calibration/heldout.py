"""The table: cross-entropy of arms on held-out text, with intervals by document."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.errors import UserError
from layerroute.few_units import widening
from layerroute.precision import autocast
from layerroute.routing import last_decision
from layerroute.skipping.calibration.journal import kept
from layerroute.skipping.calibration.stack import CHUNK_TOKENS
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.fingerprint import base_of
from layerroute.skipping.flops import skip_flops
from layerroute.skipping.layerwise import layer_by_layer
from layerroute.skipping.model import find_router, get_router
from layerroute.skipping.skip_config import layer_and_unit

DRAWS = 10_000


@kept
@dataclass(frozen=True, kw_only=True)
class Score:
    """One arm on held-out windows, in inference mode.

    Attributes:
        losses: (N,) mean cross-entropy in nats of each window.
        skipped: share of routed compute that was skipped, from hard decisions over all tokens; 0 without a router.
        skipped_by_layer: the same by layer (of a layer with two sites: their mean).
        saved: share of the decoder layers' forward FLOPs that was saved, skip paths and router paid for: the cost at
            which arms are compared. See `saved_share`.
    """

    losses: Float[Tensor, "N"]
    skipped: float
    skipped_by_layer: dict[int, float]
    saved: float = 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy (all windows have as many tokens)."""
        return float(self.losses.mean())


@torch.inference_mode()
def score(model: Any, ids: Int[Tensor, "N T"], *, precision: str = "fp32") -> Score:
    """Cross-entropy of windows under the model as it stands, with its router if it has one."""
    routed = find_router(model) is not None
    step = max(1, CHUNK_TOKENS // ids.shape[1])

    def read(part: Int[Tensor, "n T"]) -> tuple[Tensor, Tensor | None]:
        with autocast(precision, part.device):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        target = part[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        counts = last_decision(model).counts()[:, 0] if routed else None
        return loss.view_as(target).mean(dim=1), counts

    found = layer_by_layer(model, read, ids.split(step))
    losses = [loss for loss, _ in found]
    counts = [count for _, count in found if count is not None]
    skipped = torch.stack(counts) if counts else None
    by_layer: dict[int, float] = {}
    saved = 0.0
    if skipped is not None:
        shares = skipped.sum(dim=0) / ids.numel()
        sizes = torch.tensor([part.numel() for part in ids.split(step)], device=skipped.device)
        rates = 1 - skipped / sizes.unsqueeze(1)
        # By call: which sites are executed sparsely is decided anew in each.
        paid = [
            saved_share(model, rate, ids.shape[1]) * int(size)
            for rate, size in zip(rates, sizes, strict=True)
        ]
        saved = sum(paid) / ids.numel()
        of_layer: dict[int, list[float]] = {}
        for name, share in zip(get_router(model).sites, shares.tolist(), strict=True):
            of_layer.setdefault(layer_and_unit(name)[0], []).append(share)
        by_layer = {layer: sum(own) / len(own) for layer, own in of_layer.items()}
    mean = sum(by_layer.values()) / len(by_layer) if by_layer else 0.0
    return Score(losses=torch.cat(losses), skipped=mean, skipped_by_layer=by_layer, saved=saved)


def saved_share(model: Any, rates: Float[Tensor, "R"], length: int) -> float:
    """Share of the decoder layers' forward FLOPs that one call saves, by the analytic count, attention counted evenly.

    Args:
        model: with its router. With ``execution: auto`` a site where too few tokens skip saves nothing.
        rates: (R,) share of the call's tokens that run at each site.
        length: T, of the windows.

    Returns:
        The share; of a family without a count, the share of sites that is skipped.
    """
    router = get_router(model)
    base = base_of(model)
    if base.config.get_text_config().model_type not in FAMILIES:
        return float(1 - rates.float().mean())
    flops = skip_flops(base.config, router.config, length)
    least = router.config.profitability.prefill if router.execution == "auto" else 0.0
    paid = flops.sparse_per_token(rates.tolist(), least=least, evenly=True)
    return 1 - (paid - flops.output) / flops.layers_per_token


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of paired differences with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a: Float[Tensor, "N"], b: Float[Tensor, "N"], *, seed: int = 0, draws: int = DRAWS
) -> Difference:
    """A - b, with the percentile interval of means over documents drawn with replacement, widened where they are few.

    Raises:
        UserError: there is one document, which has no interval.
    """
    difference = (a - b).double().cpu()
    if len(difference) < 2:
        raise UserError("one window of text has no interval; give more text to judge on (--tokens-heldout)")
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(difference), (draws, len(difference)), generator=generator)
    means = difference[picks].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    mean, wider = float(difference.mean()), widening(len(difference))
    return Difference(mean=mean, low=mean + wider * (low - mean), high=mean + wider * (high - mean))
