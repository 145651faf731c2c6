"""``layerroute compare RUN RUN ...``: the tables of a comparison in the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

from layerroute.cli.arguments import add_comparing, comparing
from layerroute.cli.output import make_console, print_json

DESCRIPTION = """\
Print the tables that compare runs: final losses with the bigram model beside them, differences paired by seed, routing,
cost, what each arm was given, the controls that are missing, and what can be said."""
EPILOG = """\
examples:
  layerroute compare runs/baseline-seed42 runs/dynamic-seed42
  layerroute compare runs/study --baseline baseline_matched
  layerroute compare runs/study --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run directories, record files, or directories of runs",
    )
    add_comparing(parser)
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison."""
    from layerroute.lab.compare import compare
    from layerroute.lab.runs import load_runs

    comparison = compare(load_runs(arguments.runs), **comparing(arguments))
    if arguments.json:
        print_json(comparison.to_dict(), indent=2)
        return 0
    from layerroute.lab.report.terminal import print_comparison

    print_comparison(comparison, make_console())
    return 0
