"""How much a token's prediction suffers from any disturbance below it.

What skipping costs a token is the size of the disturbance times how much the token's prediction minds one. The first
is the layer's influence, which states tell. The second is far from the same for all tokens (a prediction that is
certain minds little), is much the same for all layers, and varies more: on SmolLM2-135M the log-cost of skipping one
middle layer correlates with it by 0.8, and with the influence by 0.2.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from layerroute.skipping.calibration.costs import LayerCosts
from layerroute.skipping.calibration.in_order import Advance, Policy, replay
from layerroute.skipping.calibration.stack import LayerStack

FLOOR = 1e-5
"""Nats below which costs are round-off."""

Weights = Mapping[int, tuple[float, float]]
"""By layer: weight of log-influence and of sensitivity in the log-cost."""


@torch.inference_mode()
def probe(
    stack: LayerStack,
    policy: Policy,
    ids: Int[Tensor, "N T"],
    full: Float[Tensor, "N T D"],
    *,
    advance: Advance | None = None,
) -> Float[Tensor, "N T"]:
    """Log of the KL divergence that a disturbance causes.

    Args:
        policy: the disturbance: random skipping.
        ids: windows.
        full: output of the full model's last layer for them.
        advance: told the share done.
    """
    disturbed = replay(stack, policy, stack.embed(ids), ids, advance=advance)
    parts = []
    for chunk in stack.chunks(len(ids)):
        part = ids[chunk]
        reference = stack.probabilities(full[chunk], part)
        entropy = stack.cross_entropies(full[chunk], part, reference)
        parts.append(stack.cross_entropies(disturbed[chunk], part, reference) - entropy)
    return torch.cat(parts).clamp_min(FLOOR).log()


def cost_weights(
    costs: Mapping[int, LayerCosts], sensitivity: Float[Tensor, "n"]
) -> dict[int, tuple[float, float]]:
    """Regress the log-cost of each layer on log-influence and sensitivity.

    Args:
        costs: by layer, of n tokens.
        sensitivity: of the same tokens.
    """
    found = {}
    for layer, measured in costs.items():
        features = torch.stack([measured.influence, sensitivity], dim=1).double()
        target = measured.cost.double().clamp_min(FLOOR).log()
        features, target = features - features.mean(dim=0), target - target.mean()
        gram = features.T @ features
        weight = torch.linalg.solve(
            gram + 1e-3 * gram.diagonal().mean() * torch.eye(2, device=gram.device), features.T @ target
        )
        # More influence never makes a token cheaper to skip: what says so is noise.
        found[layer] = (max(0.0, float(weight[0])), max(0.0, float(weight[1])))
    return found
