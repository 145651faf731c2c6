"""What is looked at before weights are read: that they are safetensors in their own folder, and fit the configuration.

A checkpoint may come from a stranger. Nothing is allocated for it before its header and its configuration agree, and
neither can ask for more than the file holds.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.integrity import inside

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "head_dim",
    "gdn_conv_size",
)

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model.

    Raises:
        UserError: there are none, only pickles, or an index names files elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted({str(name) for name in content["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{folder / INDEX} is damaged; save the model again") from error
        return [inside(folder, name) for name in names]
    if any((folder / name).is_file() for name in _PICKLES):
        raise UserError(
            f"{folder} has weights as a pickle only, which are not loaded; convert them to safetensors"
        )
    raise UserError(f"{folder} has no weights: there is no {WEIGHTS}")


def declared_shapes(files: list[Path]) -> Shapes:
    """Names and shapes of all tensors, from the headers alone; safetensors holds them to the sizes of the files.

    Raises:
        UserError: a file is missing or its header cannot be true.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"the weights in {file} cannot be loaded: {' '.join(str(error).split())[:300]}"
            ) from error
    return shapes


def check_sizes(config: dict[str, Any], files: list[Path], keys: tuple[str, ...] = _SIZES) -> None:
    """No size that a configuration names can be larger than the weights have bytes.

    Raises:
        UserError: one is.
    """
    available = sum(file.stat().st_size for file in files if file.is_file())
    for key in keys:
        for value in config[key] if isinstance(config.get(key), list) else [config.get(key)]:
            if isinstance(value, int) and value > available:
                raise UserError(
                    f"the configuration beside {files[0]} says {key} {value}, but the weights have {available} bytes "
                    "in all; nothing was allocated"
                )


def check_fits(config: HybridConfig, folder: Path) -> None:
    """Compare the shapes that ``config`` makes with those in the files, without allocating either.

    Raises:
        UserError: they differ, or there are no weights that can be used.
    """
    files = weight_files(folder)
    shapes = declared_shapes(files)
    check_sizes(config.to_dict(), files)
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys)
    missing = expected.keys() - shapes.keys() - tied
    wrong = sorted(missing | {name for name, shape in shapes.items() if expected.get(name) != shape})
    if wrong:
        raise UserError(
            f"the weights in {folder} do not fit its config.json: missing, unknown or misshapen: "
            f"{', '.join(wrong[:3])}"
        )
