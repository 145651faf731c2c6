"""Layer skipping: a router added to a pretrained causal LM, so that each token runs or skips each decoder layer."""

from layerroute.routing.handle import collect_decisions, executed, forced, last_decision
from layerroute.skipping.compiled import compilation_disabled, compile_decoding
from layerroute.skipping.families import FAMILIES
from layerroute.skipping.flops import SkipFlops, skip_flops
from layerroute.skipping.lossless import LosslessGeneration, generate_lossless
from layerroute.skipping.model import (
    add_router,
    find_router,
    get_router,
    remove_router,
    router_disabled,
    set_router_trainable,
)
from layerroute.skipping.pretrained import SMOLLM2, load_pretrained
from layerroute.skipping.router import LayerRouter
from layerroute.skipping.skip_config import SkipConfig, SkipProfitability
from layerroute.skipping.skip_paths import LowRankSkip
from layerroute.skipping.storage import RouterDescription, load_routed, load_router, read_router, save_router

__all__ = [
    "FAMILIES",
    "SMOLLM2",
    "LayerRouter",
    "LosslessGeneration",
    "LowRankSkip",
    "RouterDescription",
    "SkipConfig",
    "SkipFlops",
    "SkipProfitability",
    "add_router",
    "collect_decisions",
    "compilation_disabled",
    "compile_decoding",
    "executed",
    "find_router",
    "forced",
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
    "skip_flops",
]
