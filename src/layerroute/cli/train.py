"""Train the model of a recipe, and write its record.

RECIPE is a YAML file or the name of a shipped recipe. Any key of it can be set on the command line:

    layerroute train recipes/attention_routing/dynamic.yaml --train.max_steps 29

A run that was interrupted goes on where it was when the same command is given again. Exit codes: 0 completed, 1 failed
(the last line and the record say why), 2 bad input, 130 interrupted by Ctrl-C, 143 by SIGTERM; after the last two the
run can go on.
"""

import argparse
import shlex
import sys
from pathlib import Path

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
        "--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME-seedN)"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto (default): go on from the newest checkpoint in the folder, if there is one; never: the folder must "
        "be new or empty; PATH: go on from this checkpoint",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    overrides = dict(arguments.overrides)
    if arguments.seed is not None:
        overrides["seed"] = str(arguments.seed)
    recipe = load_recipe(arguments.recipe, overrides)
    from layerroute.training.run import train_recipe

    command = shlex.join(["layerroute", *sys.argv[1:]])
    return train_recipe(recipe, out=arguments.out, resume=arguments.resume, command=command)
