"""The decision of a forward call, wherever the model keeps it."""

from typing import Any

from torch import nn

from layerroute.routing import RouteDecision
from layerroute.skipping.router import LayerRouter


def decision_of(model: nn.Module, output: Any) -> RouteDecision | None:
    """What was decided in the call that gave ``output``; None if the model routes nothing.

    Hybrid models hand their decision out with the output. A pretrained model with a router keeps its own class and
    output; its router has the decision of the last call.
    """
    if hasattr(output, "decision"):
        decision: RouteDecision | None = output.decision
        return decision
    for module in model.modules():
        if isinstance(module, LayerRouter):
            return module.last if module.enabled else None
    return None
