"""Train the model of a recipe, and write its record.

RECIPE is a YAML file or the name of a shipped recipe. Any key of it can be set on the command line:

    layerroute train recipes/attention_routing/dynamic.yaml --train.max_steps 29

A run that was interrupted goes on where it was when the same command is given again; --fresh starts it again. Exit
codes: 0 completed, 1 failed (the last line and the record say why), 2 bad input, 130 interrupted by Ctrl-C, 143 by
SIGTERM; after the last two the run can go on.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from layerroute.cli.output import folder
from layerroute.errors import UserError
from layerroute.recipe import load_recipe

ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Recipe, seed, folder and resumption; dotted overrides are taken by the frame."""
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe's YAML file, or the name of a shipped recipe"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of weights, data order and noise (default: the recipe's)"
    )
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the run (default: runs/NAME-seedN)"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (default): go on from the newest checkpoint in the folder, if there is one; never: the folder must "
        "be new or empty; PATH: go on from this checkpoint",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start again from the beginning; an earlier run in the folder is renamed to DIR.earlier-N",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    overrides = dict(arguments.overrides)
    if arguments.seed is not None:
        overrides["seed"] = str(arguments.seed)
    recipe = load_recipe(arguments.recipe, overrides)
    from layerroute.training.run import default_out, train_recipe

    out = arguments.out or default_out(recipe)
    if arguments.fresh:
        _begin_anew(out, arguments.resume)
    command = shlex.join(["layerroute", *sys.argv[1:]])
    return train_recipe(recipe, out=out, resume=arguments.resume, command=command)


def _begin_anew(out: Path, resume: str) -> None:
    from layerroute.training.run_directory import set_run_aside

    if resume not in ("auto", "never"):
        raise UserError("--fresh starts again and --resume PATH goes on: give one of them")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--fresh is for a run of one process; give a run of several a new --out")
    aside = set_run_aside(out)
    if aside is not None:
        print(f"layerroute: the earlier run is in {aside}", file=sys.stderr)
