"""Tokens added to a base's vocabulary (``resize_token_embeddings``): kept with the router, put back on loading."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig

from layerroute.errors import UserError
from layerroute.skipping.fingerprint import without_adapters


def size_of(model: Any) -> int:
    """Rows of the model's vocabulary."""
    return int(model.config.get_text_config().vocab_size)


def size_at(source: str) -> int | None:
    """Rows of the vocabulary that a model has where it was loaded from; None where that cannot be read."""
    if not source:
        return None
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().vocab_size)
    except Exception:  # whatever the libraries say of a name that is none, or of code that is not run
        return None


def _weights(model: Any) -> dict[str, Tensor]:
    """What has one row a token, each once."""
    found: dict[str, Tensor] = {}
    for end, module in (("input", model.get_input_embeddings()), ("output", model.get_output_embeddings())):
        if module is None:
            continue
        for name, value in without_adapters(module).named_parameters(recurse=False):
            if value.shape[0] == size_of(model) and not any(value is other for other in found.values()):
                found[f"{end}.{name}"] = value
    return found


def save_rows(model: Any, first: int, file: Path) -> None:
    """Write all rows from ``first`` on."""
    rows = {name: value.detach()[first:].cpu().clone() for name, value in _weights(model).items()}
    save_file(rows, file, metadata={"format": "pt"})


@torch.no_grad()
def resize(model: nn.Module, size: int, file: Path) -> None:
    """Give the model so many tokens, the last ones from the file.

    Raises:
        UserError: if the file is damaged or does not fit the model, which is then left as it is.
    """
    base: Any = model
    try:
        rows = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}; make the router folder again") from error
    shapes = {name: tuple(value.shape[1:]) for name, value in _weights(base).items()}
    if shapes != {name: tuple(value.shape[1:]) for name, value in rows.items()}:
        raise UserError(f"{file} does not fit the model's vocabulary; make the router folder again")
    if size_of(base) != size:
        base.resize_token_embeddings(size, mean_resizing=False)
    weights = _weights(base)
    for name, value in rows.items():
        if len(value):
            weights[name][size - len(value) :] = value
