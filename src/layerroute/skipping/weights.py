"""What is looked at before weights are read: that they are safetensors in their own folder, and fit the configuration.

A model may come from a stranger, whose configuration can ask for any number of layers or widths, and transformers makes
at random what the weights do not hold. Nothing is allocated before headers and configuration agree.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from layerroute.errors import UserError, one_line
from layerroute.integrity import inside

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_WIDTHS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "gdn_conv_size",
)

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, none if it has no weights of this kind.

    Raises:
        UserError: the index of shards is damaged, or names files elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    try:
        names = sorted({str(name) for name in _read(folder / INDEX)["weight_map"].values()})
    except (KeyError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is damaged: it is not an index of shards") from error
    return [inside(folder, name) for name in names]


def header_shapes(files: list[Path]) -> Shapes:
    """Names and shapes of all tensors, from the headers alone; safetensors holds them to the sizes of the files.

    Raises:
        UserError: a file is missing or its header cannot be true.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                for name in content.keys():  # noqa: SIM118 (it is not a mapping)
                    shapes[name] = tuple(content.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"the weights in {file} cannot be loaded: {one_line(error)}") from error
    return shapes


def check_sizes(config: Mapping[str, Any], folder: Path, files: list[Path], tensors: int) -> None:
    """No size that a configuration names can be larger than the weights have bytes, or tensors if it counts layers.

    Raises:
        UserError: one is.
    """
    available = sum(file.stat().st_size for file in files)
    for key, limit in {**dict.fromkeys(_WIDTHS, available), "num_hidden_layers": tensors}.items():
        if isinstance(config.get(key), int) and config[key] > limit:
            raise UserError(
                f"{folder / 'config.json'} says {key} {config[key]}, but the weights beside it have {tensors} tensors "
                f"in {available} bytes; nothing was allocated"
            )


def check_weight_sizes(folder: Path) -> None:
    """Hold the configuration of a pretrained model against the headers of its weights.

    Nothing is said of weights that are quantized (their elements are packed) or that are no safetensors (those are not
    loaded anyway).

    Raises:
        UserError: the headers of the weights are damaged, lie elsewhere, or hold less than the configuration asks for.
    """
    if not (folder / "config.json").is_file():
        return
    files = weight_files(folder)
    config = _read(folder / "config.json")
    if not files or config.get("quantization_config") or config.get("auto_map"):
        return
    shapes = header_shapes(files)
    check_sizes(config, folder, files, len(shapes))
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    asked = _asked(folder)
    if asked > elements:
        raise UserError(
            f"{folder / 'config.json'} asks for {asked} parameters, but the weights beside it have {elements}; nothing "
            "was allocated"
        )


def _asked(folder: Path) -> int:
    """Parameters of the model that a configuration asks for."""
    return sum(parameter.numel() for parameter in empty_model(folder).parameters())


def empty_model(source: str | Path) -> Any:
    """The model of a folder or a name on the hub without its weights, on the meta device.

    Raises:
        UserError: there is no configuration, or none that transformers can build.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of values that nobody foresaw
        where = source / "config.json" if isinstance(source, Path) else source
        raise UserError(f"{where}: {type(error).__name__}: {one_line(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not a JSON object") from error
    return content
