"""Options that several benchmark cases have."""

import argparse
from collections.abc import Callable, Sequence

import torch

from layerroute.argument_types import add_choice, at_least, seed, size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-4, "bf16": 3e-2}  # round-off over thousands of tokens
PASSES = ("forward", "forward+backward")

rows_and_tokens = size("rows x tokens", "4x512")
heads_too = size("rows x tokens x heads x width", "1x4096x8x64")


def percent(share: float) -> str:
    """``25%``, ``12.5%``: all digits that were given, so that no two shares of a command are told alike."""
    return f"{100 * share:.12g}%"


def add_sizes(parser: argparse.ArgumentParser, default: str, *, heads: bool = False) -> None:
    """``--sizes``: tuples of whole numbers."""
    read, letters, what = rows_and_tokens, "BxT", "rows x tokens"
    if heads:
        read, letters, what = heads_too, "BxTxHxK", f"{what} x heads x width"
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=read,
        default=[read(word) for word in default.split()],
        metavar=letters,
        help=f"{what} (default: {default})",
    )


def add_shares(
    parser: argparse.ArgumentParser,
    option: str,
    default: Sequence[float],
    kind: Callable[[str], float],
    what: str,
) -> None:
    """``--skip`` or ``--rates``."""
    shown = " ".join(map(str, default))
    parser.add_argument(
        option,
        nargs="+",
        type=kind,
        default=list(default),
        metavar="SHARE",
        help=f"{what} (default: {shown})",
    )


def add_numbers(
    parser: argparse.ArgumentParser, option: str, default: Sequence[int], letter: str, what: str
) -> None:
    """Any number of whole numbers above 0."""
    told = f"{what} (default: {' '.join(map(str, default))})"
    parser.add_argument(option, type=at_least(1), nargs="*", default=list(default), metavar=letter, help=told)


def add_passes(parser: argparse.ArgumentParser) -> None:
    """``--passes``."""
    parser.add_argument(
        "--passes",
        nargs="+",
        choices=PASSES,
        default=list(PASSES),
        metavar="PASS",
        help=f"{' or '.join(PASSES)} (default: both)",
    )


def add_machine(parser: argparse.ArgumentParser, seed_of: str) -> None:
    """``--dtype``, ``--device`` and ``--seed``."""
    add_choice(parser, "--dtype", tuple(DTYPES), "fp32")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: the GPU if there is one"
    )
    parser.add_argument("--seed", type=seed, default=0, help=f"seed of {seed_of} (default: 0)")
