"""The recipes that come with layerroute: each is right, and is found by path and by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerroute.errors import UserError
from layerroute.recipe import (
    as_given,
    dump_recipe,
    find_recipe,
    kind_of_file,
    load_recipe,
    shipped,
    shipped_folder,
    shipped_recipes,
    shipped_studies,
    shipped_task_lists,
)

SHIPPED = list(shipped_recipes())


def test_there_are_recipes() -> None:
    assert "attention_routing/dynamic" in SHIPPED
    assert "attention_routing/baseline" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_its_resolved_form_reads_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump_recipe(recipe))
    assert load_recipe(resolved) == recipe
    short = load_recipe(name, {"train.max_steps": "29"})
    assert short.train.max_steps == 29, "the quick validation must be possible for every recipe"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that is no checkout, and one shipped recipe of the test's own."""
    folder = tmp_path / "package" / "recipes"
    (folder / "routing").mkdir(parents=True)
    (folder / "routing" / "dynamic.yaml").write_text("name: x\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(shipped, "shipped_folder", lambda: folder)
    return folder / "routing" / "dynamic.yaml"


@pytest.mark.parametrize("text", ["routing/dynamic", "routing/dynamic.yaml", "recipes/routing/dynamic.yaml"])
def test_a_shipped_recipe_is_found_by_name_from_anywhere(elsewhere: Path, text: str) -> None:
    assert find_recipe(text) == elsewhere
    assert as_given(elsewhere) == "routing/dynamic", "a record must not tell where it lies on this machine"
    assert as_given(Path(text)) == text


def test_a_file_that_is_there_comes_before_a_shipped_one(elsewhere: Path) -> None:
    own = Path("routing/dynamic.yaml")
    own.parent.mkdir()
    own.write_text("name: own\n")
    assert find_recipe("routing/dynamic") == own
    assert find_recipe(own.absolute()) == own.absolute()


def test_a_base_is_beside_its_file_and_never_a_shipped_one(elsewhere: Path) -> None:
    Path("leaf.yaml").write_text("base: routing/dynamic.yaml\n")
    with pytest.raises(UserError, match=r"leaf\.yaml: base: there is no recipe routing/dynamic\.yaml"):
        load_recipe("leaf.yaml")


def test_a_name_that_is_nearly_right_is_suggested(elsewhere: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'routing/dynamic'"):
        find_recipe("routing/dynamc")
    with pytest.raises(UserError, match="there is no recipe"):
        find_recipe("routing")


def test_in_a_checkout_the_recipes_are_those_at_its_top() -> None:
    folder = shipped_folder()
    if (folder.parent / "pyproject.toml").is_file():
        assert os.path.samefile(folder, Path(__file__).resolve().parents[3] / "recipes")


def test_studies_are_shipped_and_are_no_recipes() -> None:
    studies = list(shipped_studies())
    assert "attention_routing/recall" in studies
    assert not set(studies) & set(SHIPPED)
    assert {kind_of_file(find_recipe(name)) for name in studies} == {"study"}
    assert {kind_of_file(find_recipe(name)) for name in SHIPPED} == {"recipe"}
    assert list(shipped_task_lists()) == ["evaluation/original"]
    assert not {*shipped_task_lists()} & {*SHIPPED, *studies}


@pytest.mark.parametrize("name", list(shipped_studies()))
def test_every_shipped_study_plans_its_runs(name: str) -> None:
    from layerroute.studies.configuration import load_study
    from layerroute.studies.plan import Plan

    plan = Plan(load_study(name))
    runs = plan.first_runs()
    assert len({run.key for run in runs}) == len(runs) > 0
