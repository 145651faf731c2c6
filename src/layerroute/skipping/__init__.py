"""Layer skipping: a router added to a pretrained causal LM, so that each token runs or skips each decoder layer."""

from layerroute.skipping.configuration import Profitability, SkipConfig
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.flops import SkipFlops, forward_flops
from layerroute.skipping.lossless import LosslessGeneration, generate_lossless
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
from layerroute.skipping.pretrained import SMOLLM2, load_pretrained
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.skip_paths import LowRankSkip
from layerroute.skipping.storage import RouterDescription, load_routed, load_router, read_router, save_router

__all__ = [
    "FAMILIES",
    "SMOLLM2",
    "LayerRouter",
    "LosslessGeneration",
    "LowRankSkip",
    "Profitability",
    "RouterDescription",
    "SkipConfig",
    "SkipFlops",
    "add_router",
    "collect_decisions",
    "executed",
    "force_decision",
    "forward_flops",
    "generate_lossless",
    "get_router",
    "last_decision",
    "load_pretrained",
    "load_routed",
    "load_router",
    "read_router",
    "remove_router",
    "router_disabled",
    "save_router",
    "set_router_trainable",
]
