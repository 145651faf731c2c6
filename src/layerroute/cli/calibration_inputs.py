"""What `calibrate` and `headroom` share: their arguments, the model that they open and the text that they read."""

import argparse
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from layerroute.cli.text_argument import add_text_field
from layerroute.errors import UserError

if TYPE_CHECKING:
    from layerroute.skipping.calibration import CalibrationConfig, Windows

MODEL_HELP = "smollm2-135m, a local folder, or a name on the Hugging Face hub"


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, text and sizes."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="text to calibrate on: txt, jsonl, json, csv, tsv or parquet files, compressed or not, folders, globs "
        "(default: the Python library's source text; prose is better)",
    )
    add_text_field(parser)
    parser.add_argument(
        "--unit",
        choices=("block", "attention", "mlp"),
        default="block",
        help="what may be skipped of a layer: all of it, its attention, or its MLP (default: %(default)s)",
    )
    parser.add_argument(
        "--layers",
        metavar="LIST",
        help="layers that may be skipped: 4-28 or 4,6,8 (default: 4 to the last but one)",
    )
    parser.add_argument(
        "--router-layer",
        type=int,
        default=4,
        metavar="N",
        help="layers that always run (default: %(default)s)",
    )
    parser.add_argument("--rank", type=int, default=64, help="rank of the skip paths (default: %(default)s)")
    parser.add_argument(
        "--length",
        type=int,
        default=256,
        metavar="T",
        help="tokens of a window, one from each document (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-statistics",
        type=int,
        default=12288,
        metavar="N",
        help="tokens to fit on (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-selection",
        type=int,
        default=2048,
        metavar="N",
        help="tokens to choose rates and layers on (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of the places of windows and of random decisions"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of the table")


def parse_layers(text: str | None) -> list[int] | None:
    """``4-28`` or ``4,6,8-10`` as a list in rising order.

    Raises:
        UserError: if it is neither.
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--layers {text}: give layers like 4-28 or 4,6,8")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def settings(arguments: argparse.Namespace, **more: Any) -> "CalibrationConfig":
    """The arguments as a configuration, checked."""
    from layerroute.skipping.calibration import CalibrationConfig

    if arguments.threads is not None:
        if arguments.threads < 1:
            raise UserError(f"--threads is {arguments.threads}; give at least 1")
        import torch

        torch.set_num_threads(arguments.threads)
    return CalibrationConfig(
        unit=arguments.unit,
        layers=parse_layers(arguments.layers),
        router_layer=arguments.router_layer,
        rank=arguments.rank,
        length=arguments.length,
        tokens_statistics=arguments.tokens_statistics,
        tokens_selection=arguments.tokens_selection,
        seed=arguments.seed,
        **more,
    )


class Texts:
    """Documents in turn, each of them drawn once: what is calibrated on is never measured on.

    Args:
        paths: of text files; None: the Python library's own source text.
        text_field: key or column of the text in records.
    """

    def __init__(self, paths: list[str] | None, text_field: str = "text") -> None:
        from layerroute.data.configuration import DataConfig
        from layerroute.data.sources import make_source

        config = DataConfig()
        if paths is not None:
            config = DataConfig(source="files", paths=paths, text_field=text_field)
        source = make_source(config)
        self.name, self.fingerprint = source.describe(), source.fingerprint()
        self._documents: Iterator[str] = (document.text for document in source.documents())

    def draw(self, tokenizer: Any, tokens: int, length: int, seed: int) -> "Windows":
        """The next windows."""
        from layerroute.skipping.calibration import draw_windows

        return draw_windows(self._documents, tokenizer, tokens=tokens, length=length, seed=seed)


def open_model(name: str, device: str) -> tuple[Any, Any]:
    """The model, on its device and in inference mode, and its tokenizer.

    Raises:
        UserError: if there is no such model, or the tokenizer has ids for which the model has no embedding.
    """
    import torch
    from transformers.utils import logging

    from layerroute.skipping.pretrained import load_pretrained

    logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; use cpu")
    target = "cuda" if device != "cpu" and cuda else "cpu"
    # On a CPU bf16 is no faster, and on many far slower.
    model, tokenizer = load_pretrained(name, dtype=torch.float32 if target == "cpu" else "auto")
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    rows = embeddings.num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings: they do not fit"
        )
    model.to(torch.device(target))  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return model, tokenizer
