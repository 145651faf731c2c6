"""How much per-token routing could win on a model, before anything is trained.

The statistics of `calibrate`, with tokens that skip by each layer's true influence on them, against static pruning at
equal executed FLOPs and random skipping, all with the same skip paths.
"""

import argparse
import shlex
import sys
from dataclasses import asdict

from layerroute.cli.calibration_inputs import (
    add_input_arguments,
    check_budgets,
    draw,
    open_model,
    settings,
    suited,
)
from layerroute.cli.output import print_json
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, text, sizes, budgets."""
    add_input_arguments(parser)
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=float,
        metavar="SHARE",
        help="shares of routed compute to skip (default: 0.12 0.25 0.4)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns the exit code."""
    for budget in arguments.budgets or ():
        if not 0.0 < budget < 1.0:
            raise UserError(f"--budgets {budget}: a share of compute to skip lies between 0 and 1")
    config = settings(arguments, budget=0.25, tokens_search=min(1024, arguments.tokens_selection))
    from layerroute.data.progress import stages
    from layerroute.lab.headroom import CAPTION, gaps, verdict
    from layerroute.records import provenance, utc_now
    from layerroute.skipping.calibration.configuration import PRUNED
    from layerroute.skipping.calibration.headroom import BUDGETS, headroom

    started = utc_now()
    texts = Texts(parse_kinds(arguments.data, text_field=arguments.text_field))
    model, tokenizer = open_model(arguments.model, arguments.device)
    config = suited(arguments, config, model, tokenizer)
    check_budgets(model, config, arguments.budgets or ())
    with stages(True) as stage:
        stage("text")
        selection = draw(texts, tokenizer, config.tokens_selection, config.length, config.seed)
        statistics = draw(texts, tokenizer, config.tokens_statistics, config.length, config.seed + 1)
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
    record = {
        "schema": 1,
        "kind": "headroom",
        "model": arguments.model,
        "command": shlex.join(["layerroute", "headroom", *sys.argv[2:]]),
        "started": started,
        "finished": utc_now(),
        "recipe": config.to_dict(),
        "data": {"source": texts.name, "fingerprint": texts.fingerprint, "kinds": texts.describe()},
        "tokens": selection.tokens,
        "documents": len(selection.ids),
        "dense": dense,
        "rows": told,
        "caption": CAPTION,
        "verdict": verdict(told, PRUNED[config.unit]),
        **provenance(),
    }
    if arguments.json:
        print_json(record, indent=2)
        return 0
    from layerroute.cli.calibration_table import show_headroom

    show_headroom(record, record["verdict"])
    return 0
