"""Layer skipping: a router added to a pretrained causal LM, so that each token runs or skips each decoder layer."""

from layerroute.skipping.configuration import Profitability, SkipConfig
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.model import (
    add_router,
    collect_decisions,
    executed,
    force_decision,
    get_router,
    last_decision,
    remove_router,
    router_disabled,
    set_router_trainable,
)
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.skip_paths import LowRankSkip

__all__ = [
    "FAMILIES",
    "LayerRouter",
    "LowRankSkip",
    "Profitability",
    "SkipConfig",
    "add_router",
    "collect_decisions",
    "executed",
    "force_decision",
    "get_router",
    "last_decision",
    "remove_router",
    "router_disabled",
    "set_router_trainable",
]
