"""``layerroute validate``: hold recipes to their types and say what they come to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerroute.cli.output import print_json
from layerroute.errors import UserError
from layerroute.recipe import (
    Recipe,
    find_recipe,
    kind_of_file,
    load_recipe,
    recipe_to_dict,
    shipped_recipes,
    shipped_studies,
    shipped_task_lists,
)
from layerroute.training.recipe_checks import check_recipe

ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``layerroute validate``."""
    parser.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE",
        help="recipe, study or list of tasks, folder of such, or name of a shipped one; none: all that come with "
        "layerroute",
    )
    parser.add_argument("--json", action="store_true", help="print the resolved recipes as JSON")
    parser.epilog = (
        "A value may be changed for the check: --train.max_steps 29. Exit code 2 if a recipe is wrong."
    )


def run(arguments: argparse.Namespace) -> int:
    """Check each recipe; print its key figures, or on stderr what is wrong with it."""
    results = [_check(path, arguments.overrides) for path in _expand(arguments.recipes)]
    if arguments.json:
        print_json([entry for _, entry in results], indent=2)
    for recipe, entry in results:
        if not entry["valid"]:
            print(f"layerroute: error: {entry['error']}", file=sys.stderr)
        elif not arguments.json:
            print(_other_summary(entry) if recipe is None else _summary(recipe, entry["file"]))
    return 0 if all(entry["valid"] for _, entry in results) else 2


def _expand(recipes: list[str]) -> list[str]:
    if not recipes:
        return [*shipped_recipes(), *shipped_studies(), *shipped_task_lists()]
    paths: list[str] = []
    for text in recipes:
        inside = sorted(str(path) for path in Path(text).rglob("*.yaml")) if Path(text).is_dir() else [text]
        if not inside:
            raise UserError(f"{text} is a folder without recipes (*.yaml).")
        paths += inside
    return paths


def _check(path: str, overrides: Mapping[str, str]) -> tuple[Recipe | None, dict[str, Any]]:
    try:
        file = str(find_recipe(path))
        kind = kind_of_file(Path(file))
        if kind == "study":
            return None, _check_study(file, overrides)
        if kind == "tasks":
            from layerroute.evaluation.task_list import load_task_list

            tasks = [{"task": task.task, "shots": task.shots} for task in load_task_list(file)]
            return None, {"file": file, "valid": True, "tasks": tasks}
        recipe = load_recipe(file, overrides)
        check_recipe(recipe)
    except UserError as error:
        return None, {"file": path, "valid": False, "error": " ".join(str(error).split())}
    return recipe, {"file": file, "valid": True, **_figures(recipe), "recipe": recipe_to_dict(recipe)}


def _check_study(file: str, overrides: Mapping[str, str]) -> dict[str, Any]:
    """Every run that can be planned is, so that each arm's recipe is held to its types with all that the study sets."""
    from layerroute.studies.configuration import load_study
    from layerroute.studies.plan import Plan

    study = load_study(file, overrides)
    plan = Plan(study)
    plan.first_runs()
    for name in plan.variants:
        plan.recipe(name, study.config.seeds[0], {})
    return {
        "file": file,
        "valid": True,
        "study": study.config.name,
        "arms": list(plan.variants),
        "seeds": study.config.seeds,
        "runs": plan.size(),
    }


def _other_summary(entry: Mapping[str, Any]) -> str:
    """Of a study, or of a list of tasks."""
    if "tasks" in entry:
        shown = (
            task["task"] + ("" if task["shots"] is None else f" ({task['shots']} shots)")
            for task in entry["tasks"]
        )
        return f"{Path(entry['file']).stem}  ({entry['file']})\n  tasks: {', '.join(shown)}"
    return (
        f"{entry['study']}  ({entry['file']})\n"
        f"  study of {', '.join(entry['arms'])}\n"
        f"  seeds {', '.join(map(str, entry['seeds']))}: {entry['runs']} runs in all"
    )


def _figures(recipe: Recipe) -> dict[str, Any]:
    tokens = recipe.train.max_steps * recipe.train.batch_size * recipe.data.sequence_length
    return {"name": recipe.name, "capability": recipe.capability, "seed": recipe.seed, "tokens": tokens}


def _summary(recipe: Recipe, file: str) -> str:
    data, train = recipe.data, recipe.train
    model = (
        {**recipe_to_dict(recipe)["model"], **_skipping(recipe)}
        if recipe.capability == "layer_skipping"
        else recipe.model
    )
    steps = f"{train.max_steps:,} steps x {train.batch_size} sequences x {data.sequence_length:,} tokens"
    lines = [
        f"{recipe.name}  ({file})",
        f"  {recipe.capability}, seed {recipe.seed}",
        f"  model: {', '.join(f'{key} {_brief(value)}' for key, value in model.items()) or 'defaults'}",
        f"  data:  {data.source}, tokenizer {_tokenizer(recipe)}",
        f"  train: {steps} = {_figures(recipe)['tokens']:,} tokens, learning rate {train.learning_rate:g}",
    ]
    return "\n".join(lines)


def _tokenizer(recipe: Recipe) -> str:
    """Who tokenizes: a pretrained model reads the ids of its own tokenizer, whatever the data section says."""
    if recipe.capability == "layer_skipping":
        return f"of {recipe_to_dict(recipe)['model']['name']}"
    return recipe.data.tokenizer


def _skipping(recipe: Recipe) -> dict[str, Any]:
    """What a layer-skipping recipe adds to its model, and where that starts."""
    plain = recipe_to_dict(recipe)
    skip, start = plain["skip"], plain["start"]
    return {
        "skips": f"{1 - skip['routing']['rate']:.0%} of {skip['unit']}s, {skip['granularity']} level",
        "start": start["method"] if start["method"] == "fresh" else f"{start['method']} {start['arm']}",
    }


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_brief(item)}' for key, item in value.items())})"
    return f"[{' '.join(map(str, value))}]" if isinstance(value, list) else str(value)
