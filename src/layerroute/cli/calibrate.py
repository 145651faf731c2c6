"""A routed model from a pretrained one without gradients: forward passes, minutes on a CPU.

Fits low-rank skip paths and predictors of what each of them misses in closed form, writes a router folder, and measures
it on held-out text beside static pruning and random skipping with skip paths fitted in the same way.
"""

import argparse
from dataclasses import replace

from layerroute.argument_types import add_number, rate, share
from layerroute.cli.arguments import json_file
from layerroute.cli.calibration_inputs import (
    add_input_arguments,
    add_router_arguments,
    draw,
    open_base,
    record_of,
)
from layerroute.cli.output import folder, print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError

MOST, LEAST = 36864, 9216
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
    add_input_arguments(parser, statistics="36864, or what the text has, 9216 at least")
    parser.add_argument(
        "--budget",
        type=share,
        required=True,
        metavar="SHARE",
        help="share of routed compute to skip, between 0 and 1: of --unit in --layers",
    )
    parser.add_argument(
        "--also",
        type=share,
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
    add_router_arguments(parser, judged="tokens for the table")
    parser.add_argument(
        "--allocation",
        choices=("even", "cost"),
        help="the same share of the tokens skips at every layer, which holds on other text; or each layer's share "
        "follows what skipping costs on the text at hand (default: even for parts of layers, cost for whole layers)",
    )
    parser.add_argument(
        "--min-share",
        type=rate,
        default=0.1,
        metavar="SHARE",
        help="of --allocation cost: a layer is skipped by none or by at least this share of the tokens (default: "
        "%(default)s)",
    )
    add_number(
        parser,
        "--rounds",
        1,
        "of --allocation cost: share the budget out anew under the routing found, N - 1 times",
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
        "--record", type=json_file, metavar="FILE", help="write the result record to this .json file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Calibrate; returns the exit code."""
    if arguments.controls and arguments.out is None:
        raise UserError("--controls needs --out: the folder to write them to")
    from layerroute.benchmark.output import save
    from layerroute.cli.calibration_table import show_calibration
    from layerroute.data.progress import stages
    from layerroute.records import utc_now
    from layerroute.skipping.calibration import (
        CONTROLS,
        TABLE,
        calibrate,
        compare_arms,
        journal_of,
        result_sections,
        save_calibration,
        score_budgets,
        verdict,
    )
    from layerroute.skipping.devices import is_offloaded

    started = utc_now()
    field = arguments.text_field
    kinds = parse_kinds(arguments.data, text_field=field)
    heldout_kinds = arguments.heldout and parse_kinds(arguments.heldout, "--heldout", text_field=field)
    texts = Texts(kinds)
    heldout_texts = Texts(heldout_kinds) if heldout_kinds else texts
    model, tokenizer, config = open_base(
        arguments,
        budget=arguments.budget,
        checked=[arguments.budget, *arguments.also],
        tokens_statistics=MOST,
        allocation=arguments.allocation,
        also=arguments.also,
        granularity=arguments.router,
        own_text=arguments.own_text,
        tokens_search=min(arguments.tokens_search, arguments.tokens_selection),
        tokens_heldout=arguments.tokens_heldout,
        min_share=arguments.min_share,
        rounds=arguments.rounds,
    )
    with stages(True) as stage:
        advance = stage("text")
        selection = draw(texts, tokenizer, config, config.tokens_selection, 0)
        heldout = draw(heldout_texts, tokenizer, config, config.tokens_heldout, 2)
        # Last, since they may take all that is left.
        least = None if arguments.tokens_statistics else LEAST
        statistics = draw(texts, tokenizer, config, config.tokens_statistics, 1, least=least)
        config = replace(config, tokens_statistics=statistics.tokens)
        advance(1.0)
        seen, unseen = statistics.ids.to(model.device), heldout.ids.to(model.device)
        controls = CONTROLS if arguments.controls else TABLE
        journal = None
        if is_offloaded(model):
            stage("what an earlier call has found")
            journal = journal_of(model, config, seen, selection.ids, unseen, also=controls)
        calibration = calibrate(
            model,
            config,
            statistics=seen,
            selection=selection.ids.to(model.device),
            controls=controls,
            journal=journal,
            stage=stage,
        )
        scores, against = compare_arms(model, calibration, unseen, journal=journal, stage=stage)
        others = score_budgets(model, calibration, seen, unseen, journal=journal, stage=stage)
    if arguments.out is not None:
        notes = {"kinds": texts.describe()}
        save_calibration(model, calibration, seen, arguments.out, controls=arguments.controls, notes=notes)
    unit = "" if config.unit == "block" else f"{config.unit}-"
    record = record_of("calibration", arguments, started, config.to_dict(), texts)
    record["run"] = f"calibrate-{unit}{round(100 * config.budget)}"
    record["capability"] = "layer_skipping"
    record["data"] |= {
        "heldout_source": heldout_texts.name,
        "heldout_fingerprint": heldout.fingerprint,
        "windows": {
            "statistics": len(statistics.ids),
            "selection": len(selection.ids),
            "heldout": len(heldout.ids),
        },
    }
    record |= result_sections(calibration, scores, against)
    record["budgets"] = {
        f"{budget:g}": {"loss": one.loss, "skipped": one.skipped, "saved": one.saved}
        for budget, one in others.items()
    }
    if arguments.record is not None:
        save(arguments.record, record)
    if journal is not None:
        journal.discard()
    if arguments.json:
        print_json(record, indent=2)
        return 0
    show_calibration(record, verdict(record["arms"]))
    if arguments.out is not None:
        print(f'The router is in {arguments.out}: layerroute generate {arguments.out} "..." --show-routes')
    return 0
