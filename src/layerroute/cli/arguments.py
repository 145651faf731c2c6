"""Arguments that several commands have, each stated once. Types that need no output are in `argument_types`."""

import argparse
from pathlib import Path
from typing import Any

from layerroute.argument_types import at_least
from layerroute.cli.output import file
from layerroute.data.configuration import DataConfig
from layerroute.errors import UserError


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


def serve_word(word: str) -> str:
    """Type of ``--serve``."""
    from layerroute.routing.serving import held_within  # here: the help of a command loads without torch

    try:
        held_within(word, "serve")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("serve: ")) from None
    return word


def add_serve(parser: argparse.ArgumentParser) -> None:
    """``--serve``."""
    parser.add_argument(
        "--serve",
        type=serve_word,
        metavar="{threshold,rate,rate:SHARE}",
        help="threshold: use the saved thresholds, so that the rate depends on the text; rate: hold each "
        "sequence at the rate asked for, within 0.01 at 512 tokens; rate:0.05: within 0.05, which costs less "
        "quality (default: as the model's configuration says)",
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


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The trained or routed model: what `load_model` takes."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder of a run, of a saved model or of a router"
    )


def add_comparing(parser: argparse.ArgumentParser) -> None:
    """What `lab.compare.compare` takes beside the runs; see `comparing`."""
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="arm that the others are compared with (default: 'baseline', or a static arm of equal cost, or any static "
        "arm; for layer skipping none: the routed arm is compared with all others)",
    )
    parser.add_argument(
        "--subject",
        metavar="ARM",
        help="routed arm that the question is about (default: a learned one whose decisions are causal, with most "
        "controls at its FLOPs, then most seeds)",
    )
    parser.add_argument(
        "--allow-different-data",
        action="store_true",
        help="compare runs that saw different data nevertheless; what is shown then says so and gives no verdict",
    )


def comparing(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given of `add_comparing`."""
    return {name: getattr(arguments, name) for name in ("baseline", "subject", "allow_different_data")}


def add_window_sizes(
    parser: argparse.ArgumentParser, *, length: int | None = 256, rows: int | None = 8
) -> None:
    """``--sequence-length`` and ``--batch-size``. None: as in training."""
    for option, least, metavar, default, what in (
        ("--sequence-length", 2, "T", length, "tokens of a window"),
        ("--batch-size", 1, "B", rows, "windows at once"),
    ):
        told = "as in training" if default is None else default
        parser.add_argument(
            option, type=at_least(least), default=default, metavar=metavar, help=f"{what} (default: {told})"
        )


def add_tasks(parser: argparse.ArgumentParser, what: str) -> None:
    """``--tasks``, ``--limit`` and ``--shots`` of lm-evaluation-harness."""
    parser.add_argument("--tasks", nargs="+", metavar="TASK", default=[], help=what)
    parser.add_argument(
        "--limit", type=at_least(1), metavar="N", help="documents of each task (default: all)"
    )
    parser.add_argument(
        "--shots", type=at_least(0), metavar="N", help="examples before each question (default: the task's)"
    )
