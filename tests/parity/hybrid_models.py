"""Tiny hybrid models of every routing mode, with decisions far from a tie."""

import torch

from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.routing import routings_of

VOCABULARY = 61
MODES = {
    "parallel": {},
    "own_context": {"context": "own_context"},
    "head": {"granularity": "head"},
    "head_own_context": {"granularity": "head", "context": "own_context"},
    "sequential": {"router_mode": "sequential", "layer_pattern": ["routed", "softmax", "routed"]},
    "block": {"routed_unit": "block"},
    "block_own_context": {"routed_unit": "block", "context": "own_context"},
    "normalized": {"normalize_paths": True},
    "grouped_queries": {"num_key_value_heads": 1, "num_attention_heads": 2},
    "no_rope_wide_values": {"use_rope": False, "gdn_expand_v": 2},
    "random": {"routing": {"control": "random", "rate": 0.4}},
    "periodic": {"routing": {"control": "periodic", "rate": 0.4}},
    "static": {"routing": {"control": "static", "rate": 0.5}},
    "oracle": {"routing": {"control": "oracle", "control_tokens": [1, 40]}},
    "window": {"layer_pattern": ["gdn", "window", "window"], "window": 5},
    "mlp_threshold": {"routing": {"router": "mlp", "budget": "quantile", "rate": 0.3}},
    "held": {"serve": "rate", "routing": {"rate": 0.3}},
    "held_loosely": {"serve": "rate:0.02", "routing": {"rate": 0.3}},
    "held_heads": {"serve": "rate", "granularity": "head", "context": "own_context"},
    "held_sequential": {
        "serve": "rate",
        "router_mode": "sequential",
        "layer_pattern": ["routed", "softmax", "routed"],
        "context": "own_context",
    },
    "all_gdn": {"layer_pattern": ["gdn", "gdn"]},
    "all_softmax": {"layer_pattern": ["softmax", "softmax"]},
}


def build(seed: int = 0, **changes) -> HybridForCausalLM:
    """A tiny model whose weights are large, so that every part matters to the logits."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 32,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
    }
    model = HybridForCausalLM(HybridConfig(**settings | changes))
    for routing in routings_of(model):
        # Far from a tie, where round-off between two execution orders could tip an argmax.
        if routing.router is not None:
            for layer in routing.router.layers:
                torch.nn.init.normal_(layer.weight, std=1.0)
    return model.eval()
