"""A routed model from a pretrained one without gradients: forward passes, minutes on a CPU.

Fits low-rank skip paths and predictors of what each of them misses in closed form, writes a router folder, and measures
it on held-out text beside static pruning and random skipping with skip paths fitted in the same way.
"""

import argparse

from layerroute.argument_types import add_number, rate, share
from layerroute.cli.arguments import json_file
from layerroute.cli.calibration_inputs import (
    add_input_arguments,
    add_router_arguments,
    open_base,
    router_settings_of,
    settings_of,
)
from layerroute.cli.output import command_line, folder, print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

EPILOG = """\
examples:
  layerroute calibrate smollm2-135m --budget 0.25 --data train/*.jsonl.xz --heldout valid.jsonl.xz --out routers/25
  layerroute calibrate smollm2-135m --budget 0.25 --data 'prose=train/*.jsonl.xz' --data code:2=src --out routers/mixed
  layerroute calibrate ./my-llama --budget 0.4 --router token --layers 4-28
  layerroute calibrate smollm2-135m --unit attention --budget 0.4 --data train/*.jsonl.xz --out routers/attention-40"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, budget, text, sizes."""
    parser.epilog = EPILOG
    add_input_arguments(parser, statistics="36864, or what the text has, 9216 at least")
    parser.add_argument(
        "--budget",
        type=share,
        required=True,
        metavar="SHARE",
        help="share of routed compute to skip, between 0 and 1; routed compute is --unit in --layers",
    )
    parser.add_argument(
        "--also",
        type=share,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="further budgets for the same router; only its thresholds differ",
    )
    parser.add_argument(
        "--heldout",
        nargs="+",
        action="extend",
        metavar="[NAME=]FILE",
        help="text for the table, in kinds as --data (default: further documents of --data)",
    )
    add_router_arguments(parser, judged="tokens for the table")
    parser.add_argument(
        "--min-share",
        type=rate,
        default=0.1,
        metavar="SHARE",
        help="with --allocation cost: the least share of the tokens that skip a layer, if any do (default: "
        "%(default)s)",
    )
    add_number(
        parser,
        "--rounds",
        1,
        "with --allocation cost: share out the budget N times, each time under the routing found before",
    )
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder for the router (default: write none)"
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also write the controls as router folders, to DIR/controls (static, random, periodic, early exit)",
    )
    parser.add_argument(
        "--record", type=json_file, metavar="FILE", help="write the result record to this .json file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; returns the exit code."""
    if arguments.controls and arguments.out is None:
        raise UserError("--controls needs --out: the folder to write them to")
    whole = arguments.unit == "block" and arguments.router != "sequence"
    by_cost = (arguments.allocation or ("cost" if whole else "even")) == "cost"
    for option, value, default in (("rounds", arguments.rounds, 1), ("min-share", arguments.min_share, 0.1)):
        if value != default and not by_cost:
            raise UserError(f"--{option} is for --allocation cost: give that, too, or leave it out")
    from layerroute.api.calibration import calibrate
    from layerroute.benchmark.output import save
    from layerroute.cli.calibration_table import show_calibration
    from layerroute.skipping.calibration import CONTROLS, TABLE

    field = arguments.text_field
    kinds = parse_kinds(arguments.data, text_field=field)
    heldout = arguments.heldout and parse_kinds(arguments.heldout, "--heldout", text_field=field)
    texts = Texts(kinds)
    heldout_texts = Texts(heldout) if heldout else None
    model, tokenizer = open_base(arguments)
    settings = settings_of(arguments) | router_settings_of(arguments)
    calibration = calibrate(
        model,
        tokenizer,
        data=texts,
        heldout=heldout_texts,
        budget=arguments.budget,
        also=arguments.also,
        router=settings.pop("granularity"),
        controls=CONTROLS if arguments.controls else TABLE,
        name=arguments.model,
        min_share=arguments.min_share,
        rounds=arguments.rounds,
        tokens_statistics=arguments.tokens_statistics,
        **settings,
    )
    record = calibration.record | {"command": command_line("calibrate")}
    if arguments.out is not None:
        calibration.save(arguments.out, controls=arguments.controls)
    if arguments.record is not None:
        save(arguments.record, record)
    if arguments.json:
        print_json(record, indent=2)
        return 0
    show_calibration(record, calibration.verdict)
    if arguments.out is not None:
        print(f'The router is in {arguments.out}: layerroute generate {arguments.out} "..." --show-routes')
    return 0
