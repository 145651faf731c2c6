"""How much memory training will take, estimated before it starts."""

from layerroute.hybrid import HybridConfig

# Saved activations of one token in one part of a layer, in units of hidden_size numbers, counted with
# `torch.autograd.graph.saved_tensors_hooks` (a test holds them to that count within 20 %).
_MIXER = {"gdn": 20.0, "softmax": 8.0, "window": 8.0, "routed": 27.0}
_MLP_PER_WIDTH = 4.0  # numbers per unit of intermediate_size: gate, its activation, up, product
_NORMS = 4.0


def estimate_memory(
    config: HybridConfig,
    *,
    parameters: int,
    micro_batch: int,
    sequence_length: int,
    precision: str,
    gradient_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes of a training step of ``micro_batch`` sequences on one device, by purpose.

    Weights, gradients and both AdamW moments are fp32 (4 bytes each). Activations: what the backward pass keeps of
    each layer (with gradient checkpointing only its input, and one layer's worth while it is recomputed). Logits: as
    computed, their fp32 copy in the loss, and its gradient. Left out: the allocator's slack, temporary buffers, the
    data (memory-mapped).
    """
    tokens = micro_batch * sequence_length
    number = 3 if precision == "bf16" else 4  # under autocast half of what is kept stays fp32
    width = config.intermediate_size or 0
    layers = []
    for kind in config.layer_pattern or []:
        mlps = 2 if kind == "routed" and config.routed_unit == "block" else 1
        numbers = _MIXER[kind] * config.hidden_size + mlps * (
            _MLP_PER_WIDTH * width + _NORMS * config.hidden_size
        )
        layers.append(numbers * tokens * number)
    activations = sum(layers)
    if gradient_checkpointing:
        activations = max(layers, default=0) + len(layers) * tokens * config.hidden_size * number
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "AdamW": 8 * parameters,
        "activations": round(activations),
        "logits": tokens * config.vocab_size * ((2 if precision == "bf16" else 4) + 4 + 4),
    }
