"""Whether the weights of a saved hybrid model are there, and are those that its configuration makes."""

from pathlib import Path

import torch

from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.skipping.weights import WEIGHTS, check_sizes, header_shapes, weight_files

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def check_fits(config: HybridConfig, folder: Path) -> None:
    """Compare the shapes that ``config`` makes with those in the files, without allocating either.

    Raises:
        UserError: they differ, or there are no weights that can be used.
    """
    files = weight_files(folder)
    if not files and any((folder / name).is_file() for name in _PICKLES):
        raise UserError(
            f"{folder} has weights as a pickle only, which are not loaded; convert them to safetensors"
        )
    if not files:
        raise UserError(f"{folder} has no weights: there is no {WEIGHTS}")
    shapes = header_shapes(files)
    check_sizes(config.to_dict(), folder, files, len(shapes))
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
