"""Every shipped recipe and study, for two steps of a tiny model on tiny text, up to its report: ``make walk``.

Found by globbing, so that a new one is walked as soon as it is there. Small are the model, the text and the number of
steps; all else is the recipe's own. Studies keep all their arms, with one seed and without their grid.
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.cli.main import main
from layerroute.recipe import Recipe, load_recipe, shipped_folder, shipped_recipes
from layerroute.recipe.shipped import shipped_studies, shipped_task_lists
from layerroute.records import read_record
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained

NOT_WALKED = {
    "evaluation/original": "its tasks are fetched from the hub, and tests have no network",
}
"""Shipped files that are not walked, and why."""

PLANS = {name: Plan(load_study(name)) for name in shipped_studies()}


def in_studies() -> set[str]:
    """Recipes that are an arm of some study just as they are."""
    arms = [arm for plan in PLANS.values() for arm in plan.variants.values() if not arm.overrides]
    return {arm.file.resolve().relative_to(shipped_folder()).with_suffix("").as_posix() for arm in arms}


def alone() -> dict[str, list[str]]:
    """The other recipes, by folder."""
    found = defaultdict(list)
    for name in sorted(set(shipped_recipes()) - in_studies() - NOT_WALKED.keys()):
        found[name.rpartition("/")[0]].append(name)
    return found


def test_all_that_is_shipped_is_walked_or_has_a_reason_not_to_be() -> None:
    shipped = {*shipped_recipes(), *PLANS, *shipped_task_lists()}
    walked = {*in_studies(), *PLANS, *(name for names in alone().values() for name in names)}
    assert shipped - walked == NOT_WALKED.keys(), "NOT_WALKED names what is not walked, and nothing else"
    assert all(NOT_WALKED.values())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, and two texts."""
    folder = tmp_path_factory.mktemp("walk")
    write_documents(folder, {"train": 120, "heldout": 60, "more": 90}, length=60, sentence=f"{SENTENCE}.")
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128}
    write_pretrained(folder / "model", folder / "train.jsonl", **sizes)
    return folder


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms share what is prepared and calibrated."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


def small(home: Path, recipe: Recipe) -> dict[str, Any]:
    """What makes a recipe tiny, by dotted key."""
    train = recipe.train
    changes: dict[str, Any] = {
        "train.max_steps": 2,
        "train.batch_size": 2,
        "train.gradient_accumulation": min(2, train.gradient_accumulation),
        "train.log_every": 1,
        "train.evaluation_sequences": 4,
        "train.evaluation_batch_size": 2,
        "train.threshold_tokens": min(128, train.threshold_tokens),
        "train.route_sentences": min(2, train.route_sentences),
        "train.device": "cpu",
    }
    if recipe.data.source != "recall":
        text = {"paths": [str(home / "train.jsonl")], "validation_paths": [str(home / "heldout.jsonl")]}
        other = ("dataset", "subset", "revision", "max_documents", "max_characters")
        changes |= {f"data.{key}": None for key in other} | {"data.sequence_length": 32}
        if recipe.data.source == "kinds":
            kinds = {"one": {"paths": text["paths"]}, "two": {"paths": [str(home / "more.jsonl")]}}
            changes |= {"data.kinds": kinds}
        else:
            changes |= {"data.source": "files"} | {f"data.{key}": value for key, value in text.items()}
    if recipe.capability == "layer_skipping":
        tokens = {"tokens_statistics": 512, "tokens_selection": 128, "tokens_search": 128}
        changes |= {f"start.{key}": value for key, value in tokens.items()}
        changes |= {"model.name": str(home / "model"), "skip.rank": 4, "adapt.lora_rank": 2}
    elif recipe.data.source == "recall":  # small as they are, but for sequences of 16 times their length
        changes |= {"data.recall.evaluation_multiples": [1, 2]}
    else:
        changes |= {"model.hidden_size": 32, "model.num_attention_heads": 2}
        changes |= {"data.tokenizer": "bpe", "data.vocabulary_size": 300}
    return changes


def words(changes: Mapping[str, Any]) -> Iterator[str]:
    """As options of the command line."""
    return (f"--{key}={json.dumps(value)}" for key, value in changes.items())


def walk_study(home: Path, name: str, out: Path) -> int:
    """Run a study with one seed and without grid and gate; what all its arms have small is laid over it."""
    plan = PLANS[name]
    file = shipped_folder() / f"{name}.yaml"
    tree = yaml.safe_load(file.read_text())
    for part in ("tune", "gate"):
        tree.pop(part, None)
    tree |= {"name": plan.config.name, "seeds": plan.config.seeds[:1]}
    arms = [{"recipe": arm} if isinstance(arm, str) else arm for arm in tree["arms"]]
    tree["arms"] = [{**arm, "recipe": str(file.parent / arm["recipe"])} for arm in arms]
    copy = out.with_suffix(".yaml")
    copy.write_text(yaml.safe_dump(tree))
    each = [small(home, plan.recipe(arm, plan.config.seeds[0], {})) for arm in plan.variants]
    common = {key: value for key, value in each[0].items() if all(one.get(key) == value for one in each)}
    return main(["study", str(copy), "--out", str(out), *words(common)])


def assert_reported(out: Path, runs: int) -> None:
    """So many runs have completed two steps, and are on the page and in the paper."""
    records = [read_record(file) for file in sorted(out.rglob("record.json"))]
    assert [(record["status"], record["metrics"]["steps"]) for record in records] == [("completed", 2)] * runs
    page = (out / "report" / "index.html").read_text()
    assert all(record["arm"] in page for record in records)
    assert (out / "report" / "paper.md").stat().st_size > 2000


@pytest.mark.slow
@pytest.mark.walk
@pytest.mark.parametrize("name", sorted(PLANS.keys() - NOT_WALKED.keys()))
def test_every_study_runs_and_is_reported(name: str, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert walk_study(home, name, out) == 0
    assert_reported(out, len(PLANS[name].variants))


@pytest.mark.slow
@pytest.mark.walk
@pytest.mark.parametrize("folder", alone())
def test_every_other_recipe_runs_and_is_reported(folder: str, home: Path, tmp_path: Path) -> None:
    names = alone()[folder]
    if importlib.util.find_spec("bitsandbytes") is None:
        names = [name for name in names if load_recipe(name).model.get("quantization") != "nf4"]
    failed = []
    for name in names:
        command = [
            "train",
            name,
            "--out",
            str(tmp_path / Path(name).name),
            *words(small(home, load_recipe(name))),
        ]
        if main(command):
            failed.append(name)
    assert not failed
    if folder == "serving":  # what they are for; an engine is not needed
        for name in names:
            run = tmp_path / Path(name).name
            assert main(["export", str(run), "--to", "vllm", str(home / "exports" / name)]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert_reported(tmp_path, len(names))
