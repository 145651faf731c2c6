"""``layerroute domains CHECKPOINT NAME=FILE ...``: a router's rates on prose, code and mathematics."""

from __future__ import annotations

import argparse

from layerroute.argument_types import at_least
from layerroute.cli.arguments import add_checkpoint, add_device, add_json, add_text_field, add_window_sizes
from layerroute.cli.output import folder, make_console, print_json, write_csv, write_json
from layerroute.errors import UserError

DESCRIPTION = """\
Read windows of several kinds of text with a routed model, and compare the share of decisions for its expensive path
between them: means with bootstrap intervals over windows, and a permutation test."""
EPILOG = """\
example:
  layerroute domains runs/token-seed1 prose=valid.jsonl.xz code=src maths=maths.jsonl --windows 32 --out domains"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and texts."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_checkpoint(parser)
    parser.add_argument(
        "texts", metavar="NAME=FILE", nargs="+", help="a name for each kind of text, and its file or glob"
    )
    add_text_field(parser)
    parser.add_argument(
        "--windows", type=at_least(1), default=32, metavar="N", help="windows of each text (default: 32)"
    )
    add_window_sizes(parser, rows=4)
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="write domains.json and domains.csv (rates by site)"
    )
    add_device(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score, compare, print and write."""
    texts: dict[str, list[str]] = {}
    for given in arguments.texts:
        name, sign, file = given.partition("=")
        if not (name and sign and file):
            raise UserError(f"{given!r} does not name a text: write NAME=FILE, such as prose=valid.jsonl")
        texts.setdefault(name, []).append(file)
    from layerroute.evaluation.domains import whole_windows, window_rates
    from layerroute.evaluation.loading import load_model
    from layerroute.lab.domains import compare_domains
    from layerroute.lab.report.terminal import print_table

    loaded = load_model(arguments.checkpoint, device=arguments.device)
    # All of them before any is scored: a file that is missing is told at once.
    batches = {
        name: whole_windows(
            loaded,
            files,
            windows=arguments.windows,
            length=arguments.sequence_length,
            batch_size=arguments.batch_size,
            text_field=arguments.text_field,
        )
        for name, files in texts.items()
    }
    read = {name: window_rates(loaded, own) for name, own in batches.items()}
    first = next(iter(read.values()))
    found = compare_domains(
        {name: windows.rates for name, windows in read.items()},
        {name: windows.losses for name, windows in read.items()},
        first.sites,
        first.paths[-1],
    )
    if arguments.out is not None:
        content = {"checkpoint": str(arguments.checkpoint), "texts": texts, **found.to_dict()}
        write_json(arguments.out / "domains.json", content)
        rows = [
            (one.domain, site, f"{rate:.6g}") for one in found.domains for site, rate in one.sites.items()
        ]
        write_csv(arguments.out / "domains.csv", [("domain", "site", "rate"), *rows])
    if arguments.json:
        print_json(found.to_dict())
    else:
        print_table(found.table, make_console())
    return 0
