"""Tiny random models of every family, with a router that matters."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from layerroute.errors import UserError
from layerroute.skipping import LowRankSkip, SkipConfig, add_router, get_router

VOCABULARY = 61
LAYERS = 7
_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_MIXED = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "layer_types": _MIXED},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": _EXPERTS | {"head_dim": 16},
    "qwen3_next": _EXPERTS
    | {
        "head_dim": 16,
        "shared_expert_intermediate_size": 24,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2 + ["linear_attention"],
    },
    "gemma": {"head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "layer_types": _MIXED, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": _MIXED, "query_pre_attn_scalar": 8},
    "phi3": {"sliding_window": None, "resid_pdrop": 0.0},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 0, 1, 1]},
    "granite": {"residual_multiplier": 0.7, "attention_multiplier": 0.4},
}
LINEAR = ("qwen3_next",)
"""Of these some layers have linear attention, which refuses ``kv: evict``."""
_STATE_SPACE = {"state_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
OTHERS: dict[str, dict] = {
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "mamba": _STATE_SPACE,
    "mamba2": {**_STATE_SPACE, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": _STATE_SPACE,
    "rwkv": {"attention_hidden_size": 32, "context_length": 64},
    "minimax": {
        "head_dim": 8,
        "num_local_experts": 2,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"] * 3 + ["linear_attention"],
    },
    "kimi_linear": {
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 24,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2 + ["linear_attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 3 + ["conv"], "block_auto_adjust_ff_dim": False},
    "recurrent_gemma": {
        "attention_window_size": 6,
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
    },
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "mamba_chunk_size": 8,
        "attn_layer_indices": [1, 4],
    },
}
"""Families without a description: masked alone. Several keep their past in other things than keys and values."""
DEFAULTS = {"layers": [2, 3, 4, 6], "router_layer": 2, "rank": 4}


def plain(family: str = "llama", seed: int = 0, **changes) -> PreTrainedModel:
    """A model without a router. Its weights are large, so that every part matters to the logits."""
    torch.manual_seed(seed)
    attention = changes.pop("attn_implementation", "eager" if family == "gemma2" else "sdpa")
    described = family in FAMILIES
    config = AutoConfig.for_model(family, **_SHARED | (FAMILIES | OTHERS)[family] | changes)
    model = AutoModelForCausalLM.from_config(
        config, **{"attn_implementation": attention} if described else {}
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
            elif not described and value.ndim == 2:
                value.normal_(std=0.3)
    return model.eval()


def routed(family: str = "llama", seed: int = 0, model: dict | None = None, **skip) -> PreTrainedModel:
    """A routed model; ``skip`` are settings of SkipConfig."""
    base, config = plain(family, seed, **(model or {})), SkipConfig(**DEFAULTS | skip)
    if family in LINEAR and config.kv == "evict":
        with pytest.raises(UserError, match=r"kv: evict: layers 3, 4, 6 of this model have linear attention"):
            add_router(base, config)
        pytest.skip("refused by name")
    add_router(base, config)
    sharpen(base, seed)
    return base.eval()


def sharpen(model: torch.nn.Module, seed: int = 0) -> None:
    """Give routers decisions far from a tie (round-off must not tip them), and skip paths something to add."""
    torch.manual_seed(seed + 1)
    router = get_router(model)
    with torch.no_grad():
        for routing in router.all_routings():
            if routing.router is not None:
                for layer in routing.router.layers:
                    torch.nn.init.normal_(layer.weight, std=1.0)
                    torch.nn.init.zeros_(layer.bias)
        for path in router.skip_paths.values():
            assert isinstance(path, LowRankSkip)
            for value in (path.mean, path.up, path.bias):
                value.normal_(std=0.5)


def random_choice(rows: int, time: int, sites: int, rate: float = 0.5, seed: int = 0) -> torch.Tensor:
    """A (rows, time, sites) table of decisions."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, time, sites, generator=generator) < rate).long()
