"""Study files: what they may say, and one line for what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from layerroute.errors import UserError
from layerroute.recipe import load_recipe
from layerroute.studies.configuration import RangeConfig, load_study, short


def write(folder: Path, **content: Any) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"arms": ["a.yaml"], "seeds": [1, 2], **content}), encoding="utf-8")
    return path


def test_a_study_has_defaults(tmp_path: Path) -> None:
    config = load_study(write(tmp_path)).config
    assert (config.name, config.arms, config.seeds, config.retries) == ("study", ["a.yaml"], [1, 2], 2)
    assert list(config.objectives) == ["metrics.validation_loss", "flops.executed_per_token"]


def test_arms_ranges_and_lists_are_read(tmp_path: Path) -> None:
    arm = {"recipe": "b.yaml", "name": "b2", "overrides": {"train.max_steps": 3}}
    keys = {
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "model.layer_pattern": [["gdn"], ["softmax"]],
    }
    study = write(tmp_path, arms=["a.yaml", arm], sweep={"keys": keys, "sampler": "tpe", "trials": 5})
    loaded = load_study(study, {"train.batch_size": "4"})
    config = loaded.config
    assert config.arms[1].name == "b2"  # type: ignore[union-attr]
    assert loaded.overrides == {"train.batch_size": "4"}
    assert config.sweep is not None
    assert config.sweep.keys["train.learning_rate"] == RangeConfig(low=1e-4, high=1e-2, log=True)
    assert config.sweep.keys["model.layer_pattern"] == [["gdn"], ["softmax"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"armz": []}, "armz is not a key of studies. Did you mean 'arms'?"),
        ({"arms": []}, "arms is empty"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"seeds": "1"}, "seeds is '1'; it must be a list"),
        ({"tune": {"grid": {"train.learning_rate": [1e-3]}, "seeds": [2]}}, "share [2]"),
        ({"tune": {"grid": {}, "seeds": [3]}}, "tune.grid is empty"),
        ({"sweep": {"keys": {"a.b": {"low": 0, "high": 1}}}}, "is a range, and sampler 'grid' needs values"),
        ({"sweep": {"keys": {"a.b": {"low": 0, "high": 1, "log": True}}, "sampler": "tpe"}}, "above 0"),
        ({"sweep": {"keys": {"a.b": [1]}, "sampler": "tpe"}}, "needs a number of trials"),
        ({"sweep": {"keys": {"a.b": [1]}, "sampler": "tpi"}}, "Did you mean 'tpe'?"),
        ({"overrides": {"seed": 3}}, "overrides: seed is the study's own"),
        ({"arms": [{"recipe": "a.yaml", "overrides": {"seed": 3}}]}, "arms: a.yaml: overrides: seed is"),
        ({"tune": {"grid": {"a.b": [1]}, "seeds": [3], "overrides": {"seed": 3}}}, "tune.overrides: seed is"),
        (
            {"tune": {"grid": {"a.b": [1]}, "seeds": [3]}, "sweep": {"keys": {"a.b": [2]}}},
            "tune.grid and sweep.keys both have a.b",
        ),
        (
            {"tune": {"grid": {"a.b.c": [1]}, "seeds": [3]}, "sweep": {"keys": {"a.b": [2]}}},
            "tune.grid and sweep.keys both have a.b.c",
        ),
        ({"objectives": {"metrics.validation_los": "minimize"}}, "Did you mean 'validation_loss'?"),
        ({"objectives": {"metrcs.validation_loss": "minimize"}}, "Did you mean 'metrics'?"),
        ({"objectives": {"flop.executed_per_token": "minimize"}}, "Did you mean 'flops'?"),
        ({"objectives": {"routing.router": "minimize"}}, "no number at routing.router"),
        ({"gate": {"conditions": [{"arm": "a", "least": 0.9, "most": 0.1}]}}, "least 0.9 above most 0.1"),
        ({"overrides": ["train.max_steps"]}, "overrides is ['train.max_steps']; it must be a mapping"),
        ({"objectives": {"metrics.validation_loss": "down"}}, "'minimize' or 'maximize'"),
        ({"name": "a b"}, "letters, digits"),
        ({"gate": {"conditions": [{"arm": "a", "least": 0.9}]}}, "gate is judged by the trials of tune"),
        ({"gate": {"conditions": [{"arm": "a"}]}}, "a has neither least nor most"),
        (
            {
                "gate": {"conditions": [{"arm": "a", "most": 0.4}]},
                "tune": {"grid": {"train.learning_rate": [1e-3]}, "seeds": [3]},
            },
            "gate.metric is metrics.validation_accuracy, which is not among objectives",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(write(tmp_path, **content))
    assert words in str(error.value)
    assert str(tmp_path / "study.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": "3"}, "--seed: seed is the study's own"),
        ({"train.learning_rate": "1"}, r"--train.learning_rate: .*study.yaml varies it in tune.grid"),
        ({"train": "{learning_rate: 1}"}, r"--train.learning_rate: .*study.yaml varies it in tune.grid"),
        ({"model.routing.rate": "1"}, r"--model.routing.rate: .*study.yaml varies it in sweep.keys"),
        ({"objective.rate": "1"}, r"--objective.rate: .*study.yaml varies it in sweep.keys"),
    ],
)
def test_the_command_line_does_not_set_what_the_study_varies(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    study = write(
        tmp_path,
        tune={"grid": {"train.learning_rate": [1e-3]}, "seeds": [3]},
        sweep={"keys": {"model.routing": [{"rate": 0.25}], "objective.rate.start": [1.0]}},
    )
    load_study(study, {"train.max_steps": "3"})
    with pytest.raises(UserError, match=words):
        load_study(study, given)


def test_overrides_that_are_a_list_are_told_where_the_command_line_has_some_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"overrides is \['train.max_steps'\]; it must be a mapping"):
        load_study(write(tmp_path, overrides=["train.max_steps"]), {"train.max_steps": "2"})


def test_objectives_may_be_of_sections_that_only_some_records_have(tmp_path: Path) -> None:
    objectives = {
        "copies.margin": "maximize",
        "routing.rate.layer1": "minimize",
        "routing.skipped": "maximize",
    }
    assert load_study(write(tmp_path, objectives=objectives)).config.objectives == objectives


def test_recipes_and_studies_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run it with `layerroute study`"):
        load_recipe(write(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("capability: attention_routing\n", encoding="utf-8")
    with pytest.raises(UserError, match="it has no 'arms'"):
        load_study(recipe)


def test_values_make_names() -> None:
    assert short({"model.routing.rate": 0.25, "train.learning_rate": 1e-3}) == "rate0.25-learning_rate0.001"
    assert (
        short({"model.layer_pattern": ["gdn", "routed"], "train.x": True}) == "layer_patterngdn_routed-xtrue"
    )
