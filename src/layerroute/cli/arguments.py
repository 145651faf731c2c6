"""Arguments that several commands have, each stated once; and types that check a value while the line is read."""

import argparse
from collections.abc import Callable
from pathlib import Path

from layerroute.cli.output import file
from layerroute.data.configuration import DataConfig


def at_least(least: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number from ``least`` on."""

    def whole(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is too few; it must be at least {least}")
        return number

    return whole


def share(word: str) -> float:
    """Type of an argument that is a share between 0 and 1, and neither of them."""
    try:
        number = float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None
    if not 0.0 < number < 1.0:
        raise argparse.ArgumentTypeError(f"{word} is not a share between 0 and 1")
    return number


def json_file(word: str) -> Path:
    """Type of an argument that names a .json file to write."""
    if not word.endswith(".json"):
        raise argparse.ArgumentTypeError(f"{word}: give the name of a .json file")
    return file(word)


def figure_file(word: str) -> Path:
    """Type of an argument that names a picture to write."""
    if not word.endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{word}: give the name of a .png, .svg or .pdf file")
    return file(word)


def add_budget(parser: argparse.ArgumentParser) -> None:
    """``--budget`` of a router that is there."""
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="share of routed compute to skip, for a layer router that serves several budgets (default: its own)",
    )


def add_serve(parser: argparse.ArgumentParser) -> None:
    """``--serve``."""
    parser.add_argument(
        "--serve",
        choices=("threshold", "rate"),
        help="threshold: saved thresholds decide, and the rate is what they give on this text; rate: hold each "
        "sequence at the rate asked for (default: as the model's configuration says)",
    )


def add_text_field(parser: argparse.ArgumentParser) -> None:
    """``--text-field``."""
    parser.add_argument(
        "--text-field",
        default=DataConfig.text_field,
        metavar="NAME",
        help="key or column of the text in jsonl, json, csv, tsv and parquet (default: %(default)s)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if there is one"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``; `use_threads` follows it."""
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="threads of torch on the CPU (default: its own choice)",
    )


def use_threads(arguments: argparse.Namespace) -> None:
    """Let torch compute with as many threads as were asked for."""
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)


def add_json(parser: argparse.ArgumentParser, what: str = "the result as JSON") -> None:
    """``--json``; the frame keeps stdout for it."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")
