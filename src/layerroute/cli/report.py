"""``layerroute report DIR [RUN ...]``: HTML page, Markdown paper and figures about runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from layerroute.cli.arguments import add_comparing, comparing
from layerroute.cli.output import folder, print_json

DESCRIPTION = """\
Write a report about runs: DIR/report/index.html (opens from disk, needs no network), paper.md, and figures/ with
figures as PNG, SVG and PDF with their data as CSV. It is built from result records alone; deleting it and
running the command again gives the same bytes."""
EPILOG = """\
examples:
  layerroute report runs/demo
  layerroute report runs/demo --out public/demo
  layerroute report reports/first runs/baseline-seed42 runs/dynamic-seed42"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        help="a study or run directory; or, with RUNs, where the report shall go",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", type=Path, help="further runs, or directories of runs"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=folder, help="folder of the report (default: DIR/report)"
    )
    add_comparing(parser)
    parser.add_argument(
        "--bench",
        nargs="+",
        action="extend",
        metavar="RECORD",
        default=[],
        help="records of `layerroute bench --out`, for the figure of the speed-up",
    )
    parser.add_argument("--json", action="store_true", help="print the report's path and verdict as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Build the report and say where it is."""
    from layerroute.lab.report.build import build_report

    # Not rich's status, which is a thread: a process with threads does not fork, and draws on one core.
    shown = sys.stderr if sys.stderr.isatty() else None

    def progress(step: str) -> None:
        if shown is not None:
            print(f"\r{step:<40}", end="", file=shown, flush=True)

    progress("reading runs")
    try:
        page, comparison = build_report(
            arguments.directory,
            arguments.runs,
            out=arguments.out,
            **comparing(arguments),
            bench=arguments.bench,
            progress=progress,
        )
    finally:
        if shown is not None:
            print(f"\r{'':<40}\r", end="", file=shown, flush=True)
    if arguments.json:
        print_json({"page": str(page), "verdict": comparison.verdict, "outcome": comparison.outcome})
    else:
        print(comparison.verdict)
        print(f"Report: {page}")
    return 0
