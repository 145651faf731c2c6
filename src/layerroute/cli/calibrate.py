"""A routed model from a pretrained one without gradients: forward passes, minutes on a CPU.

Fits low-rank skip paths and predictors of what each of them misses in closed form, writes a router folder, and measures
it on held-out text beside static pruning and random skipping with skip paths fitted in the same way.
"""

import argparse
import shlex
import sys
from dataclasses import replace

from layerroute.cli.calibration_inputs import (
    add_input_arguments,
    check_budgets,
    draw,
    open_model,
    settings,
    suited,
)
from layerroute.cli.output import file, folder, print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

MOST, LEAST = 49152, 12288
"""Tokens of statistics: as many as the text has, between these."""

EPILOG = """\
examples:
  layerroute calibrate smollm2-135m --budget 0.25 --data train/*.jsonl.xz --heldout valid.jsonl.xz --out routers/25
  layerroute calibrate smollm2-135m --budget 0.25 --data prose=train/*.jsonl.xz --data code:2=src --out routers/mixed
  layerroute calibrate ./my-llama --budget 0.4 --router token --layers 4-28
  layerroute calibrate smollm2-135m --unit attention --budget 0.4 --data train/*.jsonl.xz --out routers/attention-40"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, budget, text, sizes."""
    parser.epilog = EPILOG
    add_input_arguments(parser, statistics="49152, or what the text has, 12288 at least")
    parser.add_argument(
        "--budget",
        type=float,
        required=True,
        metavar="SHARE",
        help="share of routed compute to skip, between 0 and 1: of --unit in --layers",
    )
    parser.add_argument(
        "--also",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="further budgets that the same router is to serve, by thresholds alone",
    )
    parser.add_argument(
        "--heldout",
        nargs="+",
        action="extend",
        metavar="[NAME=]FILE",
        help="text for the table, in kinds as --data (default: further documents of --data)",
    )
    parser.add_argument(
        "--tokens-heldout",
        type=int,
        default=16384,
        metavar="N",
        help="tokens for the table (default: %(default)s)",
    )
    parser.add_argument(
        "--tokens-search",
        type=int,
        default=1536,
        metavar="N",
        help="tokens for changes of one layer at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--router",
        choices=("per_layer", "token"),
        default="per_layer",
        help="each layer's own input decides, or one decision a token for all layers (default: %(default)s)",
    )
    parser.add_argument(
        "--allocation",
        choices=("even", "cost"),
        help="the same share of the tokens skips at every layer, which holds on other text; or each layer's share "
        "follows what skipping costs on the text at hand (default: even for parts of layers, cost for whole layers)",
    )
    parser.add_argument(
        "--min-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of --allocation cost: a layer is skipped by none or by at least this share of the tokens (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="of --allocation cost: share the budget out anew under the routing found, N - 1 times (default: 1)",
    )
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder for the router (default: none is written)"
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="also write the controls as router folders, to DIR/controls (static, random, periodic, early exit)",
    )
    parser.add_argument(
        "--record", type=file, metavar="FILE", help="write the result record to this .json file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; returns the exit code."""
    if arguments.controls and arguments.out is None:
        raise UserError("--controls needs --out: the folder to write them to")
    if arguments.record is not None and arguments.record.suffix != ".json":
        raise UserError(f"--record {arguments.record}: give the name of a .json file")
    config = settings(
        arguments,
        tokens_statistics=MOST,
        allocation=arguments.allocation,
        budget=arguments.budget,
        also=arguments.also,
        granularity=arguments.router,
        tokens_search=min(arguments.tokens_search, arguments.tokens_selection),
        tokens_heldout=arguments.tokens_heldout,
        min_share=arguments.min_share,
        rounds=arguments.rounds,
    )
    from layerroute.benchmark.output import save
    from layerroute.cli.calibration_table import show_calibration
    from layerroute.data.progress import stages
    from layerroute.records import provenance, utc_now
    from layerroute.skipping.calibration import (
        CONTROLS,
        TABLE,
        calibrate,
        compare_arms,
        result_sections,
        save_calibration,
        verdict,
    )

    started = utc_now()
    field = arguments.text_field
    kinds = parse_kinds(arguments.data, text_field=field)
    held_out_kinds = (
        None if arguments.heldout is None else parse_kinds(arguments.heldout, "--heldout", text_field=field)
    )
    texts = Texts(kinds)
    heldout_texts = texts if held_out_kinds is None else Texts(held_out_kinds)
    model, tokenizer = open_model(arguments.model, arguments.device)
    config = suited(arguments, config, model, tokenizer)
    check_budgets(model, config, [config.budget, *config.also])
    with stages(True) as stage:
        advance = stage("text")
        selection = draw(texts, tokenizer, config.tokens_selection, config.length, config.seed)
        heldout = draw(heldout_texts, tokenizer, config.tokens_heldout, config.length, config.seed + 2)
        # Last, since they may take all that is left.
        statistics = draw(
            texts,
            tokenizer,
            config.tokens_statistics,
            config.length,
            config.seed + 1,
            least=None if arguments.tokens_statistics else LEAST,
        )
        config = replace(config, tokens_statistics=statistics.tokens)
        advance(1.0)
        device = model.device
        calibration = calibrate(
            model,
            config,
            statistics=statistics.ids.to(device),
            selection=selection.ids.to(device),
            controls=CONTROLS if arguments.controls else TABLE,
            stage=stage,
        )
        scores, against = compare_arms(model, calibration, heldout.ids.to(device), stage=stage)
    if arguments.out is not None:
        save_calibration(
            model,
            calibration,
            statistics.ids.to(device),
            arguments.out,
            controls=arguments.controls,
            notes={"kinds": texts.describe()},
        )
    unit = "" if config.unit == "block" else f"{config.unit}-"
    record = {
        "schema": 1,
        "kind": "calibration",
        "run": f"calibrate-{unit}{round(100 * config.budget)}",
        "capability": "layer_skipping",
        "model": arguments.model,
        "command": shlex.join(["layerroute", "calibrate", *sys.argv[2:]]),
        "started": started,
        "finished": utc_now(),
        "recipe": config.to_dict(),
        "data": {
            "source": texts.name,
            "fingerprint": texts.fingerprint,
            "kinds": texts.describe(),
            "heldout_source": heldout_texts.name,
            "heldout_fingerprint": heldout.fingerprint,
            "windows": {
                "statistics": len(statistics.ids),
                "selection": len(selection.ids),
                "heldout": len(heldout.ids),
            },
        },
        **result_sections(calibration, scores, against),
        **provenance(),
    }
    if arguments.record is not None:
        save(arguments.record, record)
    if arguments.json:
        print_json(record, indent=2)
        return 0
    show_calibration(record, verdict(record["arms"]))
    if arguments.out is not None:
        print(f'The router is in {arguments.out}: layerroute generate {arguments.out} "..." --show-routes')
    return 0
