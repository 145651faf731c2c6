"""What is printed before a run starts: the model by part, its FLOPs by path, the tokens, the memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerroute.hybrid import FlopsReport, HybridConfig
from layerroute.ops.gated_delta import backend_report
from layerroute.precision import ChosenPrecision
from layerroute.recipe import Recipe

# Saved activations of one token in one part of a layer, in units of hidden_size numbers, counted with
# `torch.autograd.graph.saved_tensors_hooks` (a test holds them to that count within 20 %).
_MIXER = {"gdn": 20.0, "softmax": 8.0, "window": 8.0, "routed": 27.0}
_MLP_PER_WIDTH = 4.0  # numbers per unit of intermediate_size: gate, its activation, up, product
_NORMS = 4.0


def describe_model(config: HybridConfig, parameters: Mapping[str, Any], flops: FlopsReport) -> list[str]:
    """Lines about layers, parameters (as in the record) and FLOPs."""
    pattern, both = config.layer_pattern or [], ", both paths computed" if flops.routed_layers else ""
    lines = [
        f"model       {' '.join(pattern)}  (hidden {config.hidden_size}, {config.num_attention_heads} heads, "
        f"vocabulary {config.vocab_size:,})",
        f"parameters  {parameters['total']:,}: {_shares(parameters['by_part'])}",
        f"FLOPs       {_flops(flops.forward_per_token)} per token forward at {flops.context_length:,} tokens{both}: "
        f"{_shares(flops.by_part, _flops)}",
    ]
    if flops.routed_layers:
        sparse = ", ".join(f"{rate:.0%} softmax {_flops(flops.at_rate(rate))}" for rate in (0.0, 0.5, 1.0))
        lines.append(
            f"  by path   one routed layer: {_shares(flops.by_path, _flops)}; whole model if only the chosen path ran: "
            f"{sparse}"
        )
    if any(kind in ("gdn", "routed") for kind in pattern):
        report = backend_report()["auto"]
        assert isinstance(report, dict)
        lines.append(f"GDN         backend {report['cuda' if torch.cuda.is_available() else 'cpu']}")
    return lines


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


def describe_memory(memory: Mapping[str, int]) -> str:
    """One line about what a training step needs, in bytes by purpose."""
    return (
        f"memory      about {_bytes(sum(memory.values()))}: {_shares(memory, _bytes)} "
        "(fp32 weights, gradients and moments from the parameter count; activations and logits from the shapes)"
    )


def describe_run(
    recipe: Recipe, train_tokens: int, device: torch.device, precision: ChosenPrecision
) -> list[str]:
    """Lines about tokens to be seen and the machine."""
    train, length = recipe.train, recipe.data.sequence_length
    tokens = train.batch_size * length * train.max_steps
    epochs = f"{tokens / train_tokens:.2f} epochs" if train_tokens else "all new"
    cuda = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    return [
        f"training    {train.max_steps:,} steps × {train.batch_size} × {length:,} = {tokens:,} tokens "
        f"({epochs}), learning rate {train.learning_rate:g}",
        f"machine     {machine}, {precision.name} ({precision.reason})",
    ]


def describe_data(data: Mapping[str, object]) -> str:
    """One line about the data of a run."""
    train, validation = data["train_tokens"], data["validation_tokens"]
    held = f"{train:,} training and {validation:,} validation tokens" if train else "made as it is needed"
    return (
        f"data        {data['source']}: {held}, "
        f"tokenizer {data['tokenizer']} ({data['vocabulary_size']:,} ids), fingerprint {str(data['fingerprint'])[:12]}"
    )


def _flops(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _shares(parts: Mapping[str, float], write: Callable[[float], str] = "{:,}".format) -> str:
    return ", ".join(f"{name} {write(value)}" for name, value in parts.items())
