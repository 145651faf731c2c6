"""What the folder of a pretrained model declares, looked at before anything of that size is allocated.

A model may come from a stranger, whose configuration can ask for any number of layers or widths. transformers makes
at random what the weights do not hold.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from layerroute.errors import UserError
from layerroute.integrity import inside

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_WIDTHS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def check_weight_sizes(folder: Path) -> None:
    """Hold the configuration of a model against the headers of its weights.

    Nothing is said of weights that are quantized (their elements are packed) or that are no safetensors (those are not
    loaded anyway).

    Raises:
        UserError: the headers of the weights are damaged, lie elsewhere, or hold less than the configuration asks for.
    """
    if not (folder / "config.json").is_file():
        return
    files = _weight_files(folder)
    config = _read(folder / "config.json")
    if not files or config.get("quantization_config") or config.get("auto_map"):
        return
    tensors, elements = _held(files)
    available = sum(file.stat().st_size for file in files)
    limits = {**dict.fromkeys(_WIDTHS, available), "num_hidden_layers": tensors}
    for key, limit in limits.items():
        if isinstance(config.get(key), int) and config[key] > limit:
            raise UserError(
                f"{folder / 'config.json'} says {key} {config[key]}, but the weights beside it have {tensors} tensors "
                f"in {available} bytes; nothing was allocated"
            )
    asked = _asked(folder)
    if asked > elements:
        raise UserError(
            f"{folder / 'config.json'} asks for {asked} parameters, but the weights beside it have {elements}; nothing "
            "was allocated"
        )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    try:
        names = sorted({str(name) for name in _read(folder / INDEX)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged: it is no index of shards") from error
    return [inside(folder, name) for name in names]


def _held(files: list[Path]) -> tuple[int, int]:
    """Tensors and elements in the headers, which safetensors holds against the sizes of the files."""
    tensors = elements = 0
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 (it is no mapping)
                    tensors += 1
                    elements += torch.Size(content.get_slice(name).get_shape()).numel()
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"the weights in {file} cannot be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
    return tensors, elements


def _asked(folder: Path) -> int:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of values that nobody foresaw
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / 'config.json'}: {type(error).__name__}: {reason}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not a JSON object") from error
    return content
