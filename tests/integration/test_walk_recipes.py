"""Every shipped recipe and study, for two steps of a tiny model on tiny text, up to its report: ``make walk``.

Found by globbing, so that a new one is walked as soon as it is there. Small are the model, the text and the number of
steps; all else is the recipe's own. Studies keep all their arms, with one seed and without their grid.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from layerroute.cli.main import main
from layerroute.recipe import load_recipe, shipped_folder, shipped_recipes
from layerroute.recipe.shipped import shipped_studies, shipped_task_lists
from layerroute.records import read_record
from layerroute.studies.configuration import load_study
from layerroute.studies.plan import Plan
from tests.tiny_recipes import small, small_in_all, words, write_home

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
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128}
    return write_home(tmp_path_factory.mktemp("walk"), **sizes)


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms share what is prepared and calibrated."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)


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
    return main(["study", str(copy), "--out", str(out), *words(small_in_all(home, plan))])


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
