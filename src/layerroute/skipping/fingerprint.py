"""Telling one base model from another, whatever dtype it is loaded in.

A fingerprint is made of three SHA-256 sums. ``config``: the numbers of the architecture. ``fixed`` and
``projections``: name, shape and 16 evenly spaced values of every parameter, rounded to bfloat16, so that fp32 and bf16
loads of one checkpoint agree. ``projections`` are the decoder's matrices, which quantisation replaces; ``fixed`` is
the rest (embeddings, norms, biases of the output layer), which stays. It is a sample: a base changed in other values
only would pass. Adapters and routers are no part of it; a *merged* adapter is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerroute.errors import UserError

VALUES = 16
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters of the base under the names that it has alone, without adapters and router."""
    for name, value in model.named_parameters():
        parts = name.split(".")
        if any(part.startswith(("lora_", "layerroute", "modules_to_save")) for part in parts):
            continue
        while parts[:2] == ["base_model", "model"]:
            parts = parts[2:]
        yield ".".join(part for part in parts if part not in ("base_layer", "original_module")), value


def _values(value: Tensor) -> Tensor:
    flat = value.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel()), dtype=torch.float64).long()
    return flat[index.to(flat.device)].cpu()


def fingerprint(model: nn.Module) -> dict[str, str | None]:
    """``config``, ``fixed`` and ``projections`` of the model's base; ``projections`` is None if it is quantised.

    Raises:
        UserError: if weights are not loaded (meta device).
    """
    config: Any = model.config
    text = config.get_text_config()
    architecture = {name: getattr(text, name, None) for name in _ARCHITECTURE}
    sums = {"fixed": hashlib.sha256(), "projections": hashlib.sha256()}
    quantised = False
    for name, value in sorted(_base_parameters(model), key=lambda item: item[0]):
        if value.is_meta:
            raise UserError(
                f"the weights of {name} are not in memory, so the base cannot be told from others"
            )
        in_layer = any(part.isdigit() for part in name.split("."))
        kind = "projections" if in_layer and value.ndim == 2 else "fixed"
        if not value.is_floating_point():
            quantised = True
            continue
        bits = _values(value).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        sums[kind].update(f"{name} {tuple(value.shape)} ".encode() + bits)
    return {
        "config": hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest(),
        "fixed": sums["fixed"].hexdigest(),
        "projections": None if quantised else sums["projections"].hexdigest(),
    }


def check_base(model: nn.Module, expected: Mapping[str, str | None], name: str) -> None:
    """Refuse another base than the one of the fingerprint.

    Raises:
        UserError: naming what differs.
    """
    found = fingerprint(model)
    differing = [
        part
        for part in ("config", "fixed", "projections")
        if found[part] is not None and expected.get(part) is not None and found[part] != expected[part]
    ]
    if differing:
        what = {"config": "architecture", "fixed": "embeddings or norms", "projections": "projection weights"}
        raise UserError(
            f"this router was made for the base {name!r}, and the model's {what[differing[0]]} are not that base's; "
            "load it onto the base that it was made for (unmerged, and not in float16 if that is not its own dtype)"
        )
