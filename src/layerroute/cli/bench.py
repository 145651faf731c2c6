"""``layerroute bench CASE``: prove that the arms of a case are equal, then measure them in pairs."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerroute.argument_types import at_least
from layerroute.cli.arguments import add_json, add_threads, figure_file, json_file, use_threads
from layerroute.cli.output import json_alone, make_console, print_json
from layerroute.errors import UserError
from layerroute.lab.drawn import DRAWN, read_benchmark

if TYPE_CHECKING:
    from layerroute.benchmark.case import Case, Comparison

DESCRIPTION = """\
Prove that the arms of a case compute the same, then measure them in turn (A B A B ...).

CASE is one of
{cases}

'layerroute bench CASE --help' shows a case's own options.
'layerroute bench figure RECORD ... --out FILE' draws records that are there already."""
EPILOG = """\
exit codes: 0 measured, 1 the equality gate is red and nothing was timed, 2 bad input

examples:
  layerroute bench gated-delta --sizes 4x1024x8x64 --repeats 9
  layerroute bench prefill --sizes 4x512 1x2048 --figure prefill.png
  layerroute bench decode --skip 0.5 --json --out decode.json
  layerroute bench figure results/benchmark/decode-skip50.json --out speed.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case; what follows it is parsed by the case itself."""
    from layerroute.benchmark.cases import CASES

    width = max(map(len, CASES))
    cases = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in CASES.items())
    parser.description, parser.epilog = DESCRIPTION.format(cases=cases), EPILOG
    parser.usage = f"{parser.prog} [-h] CASE [options]"
    parser.add_argument("case", metavar="CASE", help="what to measure")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(parser_class=type(parser))


def run(arguments: argparse.Namespace) -> int:
    """Gate and measure; 1 if the gate is red."""
    with json_alone("--json" in arguments.options):  # the case's own option
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from layerroute.benchmark.cases import load_case

    if arguments.case == "figure":
        return _draw(arguments)
    case = load_case(arguments.case)
    options = case_parser(case, arguments).parse_args(arguments.options)
    if options.figure is not None and arguments.case not in DRAWN:
        raise UserError(
            f"bench {arguments.case} has no speed-up by share to draw; --figure is for {', '.join(DRAWN)}."
        )
    if options.resume and options.out is None:
        raise UserError("--resume goes on with the record of --out FILE; give it, too")
    from layerroute.benchmark.case import RedGate
    from layerroute.benchmark.output import print_table, save

    use_threads(options)
    # Without --resume, which goes on with what the same command began.
    words = [word for word in arguments.options if word != "--resume"]
    command = shlex.join(["layerroute", "bench", arguments.case, *words])
    try:
        record = _measure(arguments.case, case, options, command)
    except RedGate as red:
        print(f"layerroute: bench {arguments.case}: the equality gate is red: {red}", file=sys.stderr)
        return 1
    lines: list[str] = []
    if case.conclude is not None:
        conclusion, lines = case.conclude(record)
        record |= {"conclusion": conclusion} if conclusion else {}
    if options.out is not None:
        save(options.out, record)
    if options.figure is not None:
        from layerroute.lab.report.speed import speed_figures

        speed_figures([record], options.figure)
    if options.json:
        print_json(record, indent=2)
        return 0
    print_table(record, make_console())
    print("\n".join(lines), end="\n" if lines else "")
    return 0


def case_parser(case: "Case", arguments: argparse.Namespace) -> argparse.ArgumentParser:
    """What follows a case: its own options, and those that all cases share."""
    parser = _parser(arguments, case.description)
    case.add_arguments(parser)
    parser.add_argument(
        "--repeats",
        type=at_least(3),
        default=7,
        help="rounds of paired measurement, at least 3 (default: %(default)s)",
    )
    add_threads(parser)
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="wall: wall time (default); cpu: CPU seconds of all threads, for a machine that others also use",
    )
    add_json(parser, "the record as JSON instead of the table")
    parser.add_argument(
        "--out", type=json_file, metavar="FILE", help="also write the record to this .json file, row by row"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows that --out holds already, if the same command measured them with this code on this machine",
    )
    parser.add_argument(
        "--figure",
        type=figure_file,
        metavar="FILE",
        help="draw speed-up against the share left out, with the ideal line, to this .png, .svg or .pdf",
    )
    return parser


def _parser(arguments: argparse.Namespace, description: str) -> argparse.ArgumentParser:
    """Of what follows CASE; errors are told as those of the frame."""
    made: argparse.ArgumentParser = arguments.parser_class(
        prog=f"layerroute bench {arguments.case}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return made


def _draw(arguments: argparse.Namespace) -> int:
    """``bench figure``: one figure of committed records, without measuring anything."""
    parser = _parser(
        arguments,
        "Draw speed-up against the share left out, with the ideal line, from records of\n"
        f"{', '.join(DRAWN)}: a panel for each size.",
    )
    parser.add_argument(
        "records", nargs="+", type=Path, metavar="RECORD", help=".json file of bench CASE --out"
    )
    parser.add_argument(
        "--out", type=figure_file, required=True, metavar="FILE", help="a .png, .svg or .pdf file"
    )
    options = parser.parse_args(arguments.options)

    from layerroute.lab.report.speed import read_speed_records, speed_figures

    speed_figures(read_speed_records(options.records), options.out)
    return 0


def _measure(name: str, case: "Case", options: argparse.Namespace, command: str) -> dict[str, Any]:
    from layerroute.benchmark.output import save
    from layerroute.benchmark.runner import run_comparisons
    from layerroute.data.progress import stages

    comparisons = case.comparisons(options)
    done = 0
    with stages(True) as stage:
        advance = stage(name)

        def on_row(comparison: "Comparison", step: str) -> None:
            nonlocal advance, done
            if step == "done":
                done += 1
            else:
                advance = stage(f"{name}: {comparison.title}: {step}")
            advance(done / len(comparisons))

        return run_comparisons(
            name,
            comparisons,
            repeats=options.repeats,
            clock=options.clock,
            command=command,
            on_row=on_row,
            kept=_kept(options.out, command) if options.resume else None,
            on_record=partial(save, options.out) if options.out is not None else lambda record: None,
        )


def _kept(path: Path, command: str) -> dict[str, Any]:
    """Rows by title of the record at ``path``, as far as this command would measure the same."""
    if not path.exists():
        return {}
    from layerroute.benchmark.runner import same_rows
    from layerroute.records import provenance

    return same_rows(read_benchmark(path), command, provenance())
