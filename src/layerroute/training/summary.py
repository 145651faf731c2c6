"""What is printed before a run starts: the model by part, its FLOPs by path, the tokens, the memory."""

from collections.abc import Callable, Mapping

import torch

from layerroute.hybrid import HybridConfig
from layerroute.ops.gated_delta import backend_report
from layerroute.precision import ChosenPrecision
from layerroute.training.configuration import TrainConfig
from layerroute.training.memory import MemoryEstimate
from layerroute.training.models import ModelFigures


def describe_model(config: HybridConfig, figures: ModelFigures) -> list[str]:
    """Lines about layers, parameters and FLOPs."""
    flops = figures.flops
    pattern = " ".join(config.layer_pattern or [])
    lines = [
        f"model       {pattern}  (hidden {config.hidden_size}, {config.num_attention_heads} heads, "
        f"vocabulary {config.vocab_size:,})",
        f"parameters  {figures.total:,}: {_shares(figures.parameters)}",
        f"FLOPs       {_flops(flops.forward_per_token)} per token forward at {flops.context_length:,} tokens, both "
        f"paths computed: {_shares(flops.by_part, _flops)}"
        if flops.routed_layers
        else f"FLOPs       {_flops(flops.forward_per_token)} per token forward at {flops.context_length:,} tokens: "
        f"{_shares(flops.by_part, _flops)}",
    ]
    if flops.routed_layers:
        paths = ", ".join(f"{name} {_flops(value)}" for name, value in flops.by_path.items())
        sparse = ", ".join(f"{rate:.0%} softmax {_flops(flops.at_rate(rate))}" for rate in (0.0, 0.5, 1.0))
        lines.append(
            f"  by path   one routed layer: {paths}; whole model if only the chosen path ran: {sparse}"
        )
    if any(kind != "softmax" for kind in config.layer_pattern or []):
        report = backend_report()["auto"]
        assert isinstance(report, dict)
        name = report["cuda"] if torch.cuda.is_available() else report["cpu"]
        lines.append(f"GDN         backend {name}")
    return lines


def describe_training(
    config: TrainConfig,
    *,
    sequence_length: int,
    train_tokens: int,
    memory: MemoryEstimate,
    device: torch.device,
    precision: ChosenPrecision,
) -> list[str]:
    """Lines about tokens to be seen, machine and memory."""
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "AdamW": memory.optimizer,
        "activations": memory.activations,
        "logits": memory.logits,
    }
    return [
        *describe_run(
            config,
            sequence_length=sequence_length,
            train_tokens=train_tokens,
            device=device,
            precision=precision,
        ),
        f"memory      about {_bytes(memory.total)}: {_shares(parts, _bytes)} "
        "(fp32 weights, gradients and moments from the parameter count; activations and logits from the shapes)",
    ]


def describe_run(
    config: TrainConfig,
    *,
    sequence_length: int,
    train_tokens: int,
    device: torch.device,
    precision: ChosenPrecision,
) -> list[str]:
    """Lines about tokens to be seen and the machine."""
    tokens = config.batch_size * sequence_length * config.max_steps
    epochs = f"{tokens / train_tokens:.2f} epochs" if train_tokens else "all new"
    return [
        f"training    {config.max_steps:,} steps × {config.batch_size} × {sequence_length:,} = {tokens:,} tokens "
        f"({epochs}), learning rate {config.learning_rate:g}",
        f"machine     {_device_name(device)}, {precision.name} ({precision.reason})",
    ]


def describe_data(data: Mapping[str, object]) -> str:
    """One line about the data of a run."""
    train, validation = data["train_tokens"], data["validation_tokens"]
    held = f"{train:,} training and {validation:,} validation tokens" if train else "made as it is needed"
    return (
        f"data        {data['source']}: {held}, "
        f"tokenizer {data['tokenizer']} ({data['vocabulary_size']:,} ids), fingerprint {str(data['fingerprint'])[:12]}"
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def _flops(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _number(value: float) -> str:
    return f"{value:,}"


def _shares(parts: Mapping[str, float], write: Callable[[float], str] = _number) -> str:
    return ", ".join(f"{name} {write(value)}" for name, value in parts.items())
