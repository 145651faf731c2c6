"""Recipes: bases, overrides, types, and one clear line for each way to get them wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerroute.errors import UserError
from layerroute.recipe import dump_recipe, load_recipe, recipe_to_dict

Write = Callable[..., Path]


def test_defaults_and_values_are_typed(recipe_file: Write) -> None:
    recipe = load_recipe(
        recipe_file("train: {learning_rate: 1e-4, betas: [0, 1], folder: out, ramp: {end: 0}}")
    )
    assert recipe.name == "arm"
    assert recipe.seed == 42
    assert recipe.model == {"width": 8}
    train: Any = recipe.train
    assert train.max_steps == 1000
    assert train.learning_rate == 1e-4
    assert train.betas == (0.0, 1.0)
    assert type(train.betas[0]) is float
    assert train.folder == Path("out")
    assert (train.ramp.start, train.ramp.end) == (1.0, 0.0), "what a nested mapping leaves out is the default"


def test_base_is_merged_deeply_and_lists_are_replaced(recipe_file: Write) -> None:
    recipe_file(
        "seed: 7\nname: ground\ntrain: {max_steps: 5, report_to: [a, b], weights: {x: 1}}", "base/ground.yaml"
    )
    recipe_file("base: ground.yaml\ntrain: {fused: true}", "base/middle.yaml", head="")
    leaf = recipe_file(
        "base: base/middle.yaml\ntrain: {report_to: [c], weights: {y: 2}}", "leaf.yaml", head=""
    )
    recipe = load_recipe(leaf)
    train: Any = recipe.train
    assert recipe.name == "leaf", "the name of a base is another arm's"
    assert recipe.seed == 7
    assert (train.max_steps, train.fused, train.report_to) == (5, True, ["c"])
    assert train.weights == {"x": 1.0, "y": 2.0}


def test_a_name_that_is_given_is_kept(recipe_file: Write) -> None:
    assert load_recipe(recipe_file("name: other")).name == "other"
    assert load_recipe(recipe_file("name: other"), {"name": "third"}).name == "third"
    assert load_recipe(recipe_file("name: other"), {"name": "2024"}).name == "2024"


def test_overrides_are_applied_last(recipe_file: Write) -> None:
    file = recipe_file("train: {max_steps: 5}")
    overrides = {
        "train.max_steps": "29",
        "train.learning_rate": "1e-3",
        "train.report_to": "[a, b]",
        "train.ramp.start": 2,
        "train.fused": "true",
        "seed": "3",
        "model.routing.rate": "0.25",
    }
    recipe = load_recipe(file, overrides)
    train: Any = recipe.train
    assert (train.max_steps, train.learning_rate, train.report_to) == (29, 1e-3, ["a", "b"])
    assert (train.ramp.start, train.fused, recipe.seed) == (2.0, True, 3)
    assert recipe.model["routing"] == {"rate": 0.25}


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("123", "123"),
        ("true", "true"),
        ("null", None),
        ("plain words", "plain words"),
        ("1e3", "1e3"),
        ("", None),
    ],
)
def test_an_override_is_taken_as_text_where_text_is_due(
    recipe_file: Write, text: str, notes: str | None
) -> None:
    train: Any = load_recipe(recipe_file(), {"train.notes": text}).train
    assert train.notes == notes


def test_a_number_stays_a_number_where_text_would_do_too(recipe_file: Write) -> None:
    train: Any = load_recipe(recipe_file(), {"train.size": "5"}).train
    assert train.size == 5
    train = load_recipe(recipe_file('train: {size: "5"}')).train
    assert train.size == "5"


WRONG_VALUES = [
    ("train: {max_stepz: 3}", "train.max_stepz is not a key of recipes. Did you mean 'max_steps'?"),
    ("trian: {}", "trian is not a key of probe recipes. Did you mean 'train'?"),
    ("train: {max_steps: 1e3}", "train.max_steps is 1000.0; it must be an integer (write 1000)"),
    ("train: {max_steps: 1.5}", "train.max_steps is 1.5; it must be an integer"),
    ("train: {max_steps: abc}", "train.max_steps is 'abc'; it must be an integer"),
    ('train: {max_steps: "29"}', "train.max_steps is '29'; it must be an integer"),
    ("train: {max_steps: null}", "train.max_steps is null; it must be an integer"),
    ("train: {max_steps: [29]}", "train.max_steps is [29]; it must be an integer"),
    ("train: {max_steps: true}", "train.max_steps is true; it must be an integer"),
    ("train: {max_steps: 0}", "train.max_steps must be at least 1, got 0"),
    ("train: {learning_rate: .nan}", "train.learning_rate is nan; it must be a finite number"),
    ("train: {learning_rate: 1e999}", "train.learning_rate is inf; it must be a finite number"),
    (f"train: {{learning_rate: 1{'0' * 400}}}", "train.learning_rate is too large for a number"),
    ("train: {fused: yes}", "train.fused is 'yes'; it must be true or false"),
    ("train: {fused: 1}", "train.fused is 1; it must be true or false"),
    ("train: {precision: bf17}", "it must be 'auto' or 'bf16' or 'fp32'. Did you mean 'bf16'?"),
    ("train: {precision: 3}", "train.precision is 3; it must be 'auto' or 'bf16' or 'fp32'"),
    ("train: {seed_offset: x}", "train.seed_offset is 'x'; it must be an integer or null"),
    ("train: {report_to: a}", "train.report_to is 'a'; it must be a list, each item text"),
    ("train: {report_to: [a, 1]}", "train.report_to[1] is 1; it must be text"),
    ("train: {betas: [1]}", "train.betas is [1]; it must be a list of 2 values (a number, a number)"),
    ("train: {betas: [1, x]}", "train.betas[1] is 'x'; it must be a number"),
    ("train: {weights: [1]}", "train.weights is [1]; it must be a mapping, each value a number"),
    ("train: {weights: {a: x}}", "train.weights.a is 'x'; it must be a number"),
    ("train: {notes: 3}", "train.notes is 3; it must be text or null"),
    ("train: {size: [1]}", "train.size is [1]; it must be an integer or text"),
    ("train: {ramp: 3}", "train.ramp is 3; it must be a mapping of start, end"),
    ("train: {ramp: {strat: 3}}", "train.ramp.strat is not a key of recipes. Did you mean 'start'?"),
    ("train: {ramp: {start: null}}", "train.ramp.start is null; it must be a number"),
    (
        "train:",
        "train is null; it must be a mapping of keys such as max_steps (leave it out for its defaults)",
    ),
    ("train: 3", "train is 3; it must be a mapping"),
    ("seed: -1", "seed is -1; it must be an integer from 0 to 4294967295"),
    ("seed: 1.0", "seed is 1.0; it must be an integer"),
    ("seed: true", "seed is true; it must be an integer"),
    ("name: a/b", "name is 'a/b'; it must be made of letters, digits, '.', '_' and '-'"),
    ("name: ..", "name is '..'; it must be made of letters"),
    ("name: 3", "name is 3; it must be made of letters"),
    ("name:", "name is null; it must be made of letters"),
    ("base: 3", "base is 3; it must be the path of a recipe"),
    ("base: [a]", "base is ['a']; it must be the path of a recipe"),
    ("base: no.yaml", "there is no recipe"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_VALUES, ids=[text[:50] for text, _ in WRONG_VALUES])
def test_a_wrong_value_is_told_with_file_key_value_and_remedy(
    recipe_file: Write, text: str, message: str
) -> None:
    file = recipe_file(text)
    with pytest.raises(UserError) as caught:
        load_recipe(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")


WRONG_MODELS = [
    ("{heads: 2}", "model.width is missing; it must be an integer"),
    ("{width: 8, cache: true}", "model.cache is not a key of recipes. Valid: heads, routing, width."),
    ("{width: 8, heads: 3}", "model: 3 heads do not divide width 8"),
    ("{width: 8, heads: 0}", "model: integer modulo by zero"),
    ("{width: 8, routing: {rat: 1}}", "model.routing.rat is not a key of recipes. Did you mean 'rate'?"),
    ("{width: 8, routing: {rate: x}}", "model.routing.rate is 'x'; it must be a number"),
    ("{width: 8, routing: 3}", "model.routing is 3; it must be a mapping"),
]


@pytest.mark.parametrize(("model", "message"), WRONG_MODELS)
def test_a_section_that_stays_a_mapping_is_held_to_its_class(
    recipe_file: Write, model: str, message: str
) -> None:
    file = recipe_file(f"capability: probe\nmodel: {model}", head="")
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "capability is missing; it must be 'attention_routing'"),
        ("capability: prob", "Did you mean 'probe'?"),
        ("capability: 3", "capability is 3; it must be"),
        ("capability: [probe]", "capability is ['probe']; it must be"),
    ],
)
def test_the_capability_must_be_known(recipe_file: Write, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(recipe_file(text, head=""))


def test_the_file_that_set_a_wrong_value_is_named_not_the_one_that_was_asked_for(recipe_file: Write) -> None:
    ground = recipe_file("train: {max_steps: abc}", "ground.yaml")
    leaf = recipe_file("base: ground.yaml\ntrain: {fused: true}", "leaf.yaml", head="")
    with pytest.raises(UserError, match=f"^{re.escape(str(ground))}: train.max_steps is 'abc'"):
        load_recipe(leaf)
    load_recipe(leaf, {"train.max_steps": "3"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"train.max_stepz": "3"},
            "command line: train.max_stepz is not a key of recipes. Did you mean 'max_steps'?",
        ),
        (
            {"train.max_steps": "1e3"},
            "command line: train.max_steps is 1000.0; it must be an integer (write 1000)",
        ),
        ({"train.max_steps": None}, "command line: train.max_steps is null; it must be an integer"),
        ({"train.max_steps": "["}, "override train.max_steps, line 1: not valid YAML"),
        (
            {"train.max_steps": "0"},
            "arm.yaml with --train.max_steps 0: train.max_steps must be at least 1, got 0",
        ),
        ({"seed.x": "0"}, "command line: seed is {'x':"),
        ({"train..x": "0"}, "write section.key, such as train.max_steps"),
        ({"": "0"}, "write section.key, such as train.max_steps"),
        ({"train": "fast"}, "command line: train is 'fast'; it must be a mapping"),
        ({"base": "x.yaml"}, "command line: base is not a key of probe recipes"),
    ],
)
def test_a_wrong_override_is_told_as_such(
    recipe_file: Write, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(recipe_file("train: {max_steps: 5}"), overrides)


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_bases_in_a_circle_are_told_with_their_names(recipe_file: Write, names: list[str]) -> None:
    for name, base in zip(names, [*names[1:], names[0]], strict=True):
        recipe_file(f"base: ./{base}.yaml", f"{name}.yaml")
    with pytest.raises(UserError, match=rf"\.yaml: bases go in a circle \(a\.yaml -> .*{names[0]}\.yaml\)"):
        load_recipe(recipe_file("base: a.yaml", "start.yaml"))


def test_the_resolved_recipe_reads_back_alike(recipe_file: Write, tmp_path: Path) -> None:
    text = """
train: {notes: "1e3", learning_rate: 1e-12, report_to: ["null", "no", "012", ""], weights: {a: 3}, size: "true"}
"""
    recipe = load_recipe(recipe_file(text), {"name": "other", "seed": 5, "model.routing.rate": 1})
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump_recipe(recipe))
    again = load_recipe(resolved)
    assert again == recipe
    assert recipe_to_dict(again) == recipe_to_dict(recipe)
    assert recipe_to_dict(recipe)["train"]["max_steps"] == 1000, "defaults are part of what was resolved"
    assert recipe_to_dict(recipe)["train"]["betas"] == [0.9, 0.95]


class TestFiles:
    """What is given as a recipe and is none."""

    def fails(self, path: str | os.PathLike[str], message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_recipe(path)

    def test_missing_with_a_near_name(self, recipe_file: Write) -> None:
        file = recipe_file(name="dynamic.yaml")
        self.fails(
            file.parent / "dynamc.yaml", r"there is no recipe .*dynamc\.yaml\. Did you mean 'dynamic\.yaml'\?"
        )

    def test_missing_folder(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "nowhere" / "x.yaml", "there is no recipe")

    def test_folder(self, recipe_file: Write) -> None:
        folder = recipe_file(name="dynamic.yaml").parent
        self.fails(folder, r"is a folder; give a recipe, a \.yaml file\. Recipes in it: dynamic\.yaml\.")
        (folder / "empty").mkdir()
        self.fails(folder / "empty", "There are no recipes in it")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"x\.yaml is empty"),
            (b"# only a comment\n", r"x\.yaml is empty"),
            (b"- a\n- b\n", "it holds a list where 'key: value' lines are due"),
            (b"just words", "it holds the value 'just words'"),
            (b"\x80\x03\xff", "not UTF-8 text"),
            (b"\x00\x01\x02", "not valid YAML"),
            (b"a: [1", r"x\.yaml, line 1: not valid YAML"),
            (
                b"a: 1\nb: 2\na: 3\n",
                r"x\.yaml, line 3: not valid YAML: the key 'a' is there twice, first in line 1",
            ),
            (b"train: {a: 1, a: 2}", "the key 'a' is there twice"),
            (b"1: x", "a key must be text"),
            (b"? [a]\n: x", "a key must be text"),
            (b"a: &x 1\nb: *x\n", "aliases"),
            (b"a: &x [*x]\n", "aliases"),
            (b"a: 1\n---\nb: 2\n", "not valid YAML"),
            (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
            (b"a: !!int abc", "not valid YAML"),
            (b"a: " + b"[" * 5000, "nested too deeply"),
            (b"a: 1" + b"0" * 5000, "not valid YAML"),
            (b"a: b\n" * 300_000, "longer than any recipe"),
        ],
        ids=range(19),
    )
    def test_content(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "x.yaml"
        path.write_bytes(content)
        self.fails(path, message)

    def test_unreadable(self, tmp_path: Path) -> None:
        self.fails("x" * 5000, "cannot read the recipe")
        self.fails("", "not a path of a recipe")
        self.fails("a\0b", "not a path of a recipe")
        loop = tmp_path / "loop.yaml"
        loop.symlink_to(loop)
        self.fails(loop, "recipe")
