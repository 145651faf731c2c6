"""How much per-token routing could win on a model, before anything is trained.

The statistics of `calibrate`, with tokens that skip by each layer's true influence on them, against static pruning at
equal executed FLOPs and random skipping, all with the same skip paths.
"""

import argparse
from dataclasses import asdict

from layerroute.argument_types import share
from layerroute.cli.calibration_inputs import (
    add_input_arguments,
    open_base,
    record_of,
    settings_of,
)
from layerroute.cli.output import print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, text, sizes, budgets."""
    add_input_arguments(parser)
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=share,
        metavar="SHARE",
        help="shares of routed compute to skip (default: 0.12 0.25 0.4)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns the exit code."""
    from layerroute.cli.calibration_table import show_headroom
    from layerroute.data.progress import stages
    from layerroute.lab.headroom import CAPTION, gaps, verdict
    from layerroute.records import utc_now
    from layerroute.skipping.calibration.configuration import PRUNED, RANKED
    from layerroute.skipping.calibration.configure import config_for, draw
    from layerroute.skipping.calibration.headroom import BUDGETS, headroom

    started = utc_now()
    texts = Texts(parse_kinds(arguments.data, text_field=arguments.text_field))
    search = min(1024, arguments.tokens_selection)
    model, tokenizer = open_base(arguments)
    config = config_for(
        model,
        tokenizer,
        budget=0.25,
        checked=arguments.budgets or (),
        tokens_statistics=arguments.tokens_statistics or RANKED,
        tokens_search=search,
        own_text=0.0,
        **settings_of(arguments),
    )
    with stages(True) as stage:
        stage("text")
        selection = draw(texts, tokenizer, config, config.tokens_selection, 0)
        statistics = draw(texts, tokenizer, config, config.tokens_statistics, 1)
        dense, rows = headroom(
            model,
            config,
            statistics=statistics.ids.to(model.device),
            selection=selection.ids.to(model.device),
            budgets=tuple(arguments.budgets or BUDGETS),
            stage=stage,
        )
    plain = [asdict(row) for row in rows]
    told = [{**row, "gap": gap} for row, gap in zip(plain, gaps(plain), strict=True)]
    record = record_of("headroom", arguments, started, config.to_dict(), texts) | {
        "tokens": selection.tokens,
        "documents": len(selection.ids),
        "dense": dense,
        "rows": told,
        "caption": CAPTION,
        "verdict": verdict(told, PRUNED[config.unit]),
    }
    if arguments.json:
        print_json(record, indent=2)
    else:
        show_headroom(record, record["verdict"])
    return 0
