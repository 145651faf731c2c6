"""Does routing win away from home? Leave one kind of text out, calibrate on the rest, and judge all of them.

With a MODEL every kind is left out in turn: a router is calibrated on the other kinds, and is compared with static
pruning of the same calibration on the kind that was left out, and on held-out text of the others (home). With a ROUTER
folder nothing is calibrated: every kind is judged, and those that the router was calibrated on are marked home. All
differences are at equal executed FLOPs. A cell that is done is not done again: start the same command once more after
an interruption.
"""

import argparse
from pathlib import Path

from layerroute.argument_types import share
from layerroute.cli.arguments import add_serve
from layerroute.cli.calibration_inputs import add_input_arguments, add_router_arguments, record_of
from layerroute.cli.output import folder, make_console, print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

EPILOG = """\
examples:
  layerroute transfer smollm2-135m --budget 0.12 0.25 0.4 --out transfer
  layerroute transfer smollm2-135m --data prose=valid.jsonl --data code=src --data maths=maths.jsonl --out transfer
  layerroute transfer routers/25 --data prose=valid.jsonl --data maths=maths.jsonl --out judged
  layerroute transfer runs/token-seed42 --against runs/static_greedy-seed42 --data prose=valid.jsonl"""

RECORD = "transfer.json"
_JUDGES = {
    *("model", "data", "text_field", "length", "tokens_heldout", "budget", "against", "serve", "out"),
    *("seed", "threads", "device", "json", "help"),
}
"""What a router is judged with; all other options calibrate."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model or router, kinds of text, budgets, sizes."""
    parser.epilog = EPILOG
    add_input_arguments(parser, metavar="ROUTER|MODEL", statistics="18432: there are many calibrations")
    parser.add_argument(
        "--budget",
        type=share,
        nargs="+",
        metavar="SHARE",
        help="shares of routed compute to skip (default: 0.25; of a router: its own)",
    )
    add_router_arguments(parser, judged="tokens to judge on, of each kind")
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        metavar="ROUTER",
        help="with a ROUTER: static arms or other routers to compare with (default: those in its folder controls/)",
    )
    add_serve(parser)
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        help="folder for the record, the page, the picture and the finished cells",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, judge, write and print; returns the exit code."""
    routed = _is_router(Path(arguments.model))
    kinds = parse_kinds(arguments.data, text_field=arguments.text_field)
    if not routed and len(kinds) < 2:
        raise UserError(f"transfer leaves one kind of text out, and {len(kinds)} is given; name two or more")
    if arguments.against and not routed:
        raise UserError(
            f"--against is for a ROUTER folder; {arguments.model} is a model, and is calibrated with its own"
        )
    if arguments.serve is not None and not routed:
        raise UserError("--serve is for a ROUTER folder; a model is calibrated and served by thresholds")
    if routed:
        _refuse_sizes(arguments)
    if len(set(arguments.budget or ())) < len(arguments.budget or ()):
        raise UserError("--budget names a share twice")
    texts = Texts(kinds)
    prints = texts.fingerprints
    twice = [kind for kind, own in prints.items() if list(prints.values()).count(own) > 1]
    if twice:
        names = [kind for kind in twice if prints[kind] == prints[twice[0]]]
        raise UserError(
            f"the kinds {' and '.join(map(repr, names))} hold the same text; one text has one kind"
        )
    from layerroute.benchmark.output import save
    from layerroute.cli import transfer_cells
    from layerroute.records import utc_now

    started = utc_now()
    work = transfer_cells.judge_router if routed else transfer_cells.leave_one_out
    recipe, cells = work(arguments, texts)
    record = record_of("transfer", arguments, started, recipe, texts) | {
        "run": f"transfer-{Path(arguments.model).name}",
        "capability": "layer_skipping",
        "rows": [row for cell in cells for row in cell["rows"]],
        "seconds": sum(cell["seconds"] for cell in cells),
    }
    if arguments.out is not None:
        from layerroute.lab.report.transfer import write_transfer

        save(arguments.out / RECORD, record)
        files = write_transfer(record, arguments.out)
    if arguments.json:
        print_json(record, indent=2)
        return 0
    from layerroute.lab.report.terminal import print_table
    from layerroute.lab.transfer import summary, transfer_table

    out = make_console()
    print_table(transfer_table(record), out)
    for sentence in summary(record):
        out.print(sentence, style="bold", soft_wrap=True)
    if arguments.out is not None:
        print(f"The page is {files[0]}")
    return 0


def _refuse_sizes(arguments: argparse.Namespace) -> None:
    """A router is judged as it is: nothing is calibrated."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for option in parser._actions:
        if option.dest not in _JUDGES and getattr(arguments, option.dest) != option.default:
            name = option.option_strings[0]
            raise UserError(f"{name} is for a MODEL, which is calibrated; {arguments.model} is a router")


def _is_router(path: Path) -> bool:
    """Whether it is a router folder or the folder of a run, not a model's name or folder."""
    names = ("router.json", "record.json", "best/router.json", "last/router.json")
    return any((path / name).is_file() for name in names)
