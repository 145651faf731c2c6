"""``layerroute validate``: key figures for what is right, one line each for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerroute.cli.main import main
from layerroute.recipe import load_recipe

GOOD = "capability: attention_routing\nmodel: {hidden_size: 64, num_attention_heads: 2, layer_pattern: [gdn, routed]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ground.yaml").write_text(
        GOOD + "train: {max_steps: 10, batch_size: 4}\ndata: {sequence_length: 32}\n"
    )
    (tmp_path / "leaf.yaml").write_text(
        "base: ground.yaml\nmodel: {routing: {rate: 0.25, budget: quantile}}\n"
    )
    return tmp_path


def test_key_figures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(folder / "leaf.yaml"), "--train.max_steps", "29"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"leaf  ({folder / 'leaf.yaml'})\n")
    assert "layer_pattern [gdn routed], routing (rate 0.25, budget quantile)" in out
    assert "29 steps x 4 sequences x 32 tokens = 3,712 tokens, learning rate 0.001" in out


def test_json_of_a_folder_reads_back(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["validate", str(folder), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == ["ground", "leaf"]
    assert entries[1]["tokens"] == 10 * 4 * 32
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(json.dumps(entries[1]["recipe"]))
    assert load_recipe(resolved) == load_recipe(folder / "leaf.yaml")


def test_every_wrong_recipe_is_named_and_the_right_ones_still_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = folder / "wrong.yaml"
    wrong.write_text("base: ground.yaml\ntrain: {max_stepz: 3}\n")
    paths = [str(folder / "leaf.yaml"), str(wrong), str(folder / "leav.yaml")]
    assert main(["validate", *paths]) == 2
    out, err = capsys.readouterr()
    assert out.count("learning rate") == 1
    first, second = err.splitlines()
    assert (
        first
        == f"layerroute: error: {wrong}: train.max_stepz is not a key of recipes. Did you mean 'max_steps'?"
    )
    assert second.endswith("Did you mean 'leaf.yaml'?")

    assert main(["validate", *paths, "--json"]) == 2
    out, err = capsys.readouterr()
    assert [entry["valid"] for entry in json.loads(out)] == [True, False, False]
    assert "max_stepz" in json.loads(out)[1]["error"]


def test_a_folder_without_recipes_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path)]) == 2
    assert "is a folder without recipes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {num_attention_heads: 7}", "7 heads do not divide hidden_size 64"),
        ("model: {layer_pattern: [routed, softmax]}", "the first layer is routed"),
        ("model: {routing: {estimator: gumbel}}", "Did you mean 'gumbel_st'?"),
        ("model: {routing: {rate: 1.5}}", "1.5 is not a share"),
        ("data: {source: file}", "data.source is 'file'"),
        ("data: {paths: [x.txt]}", "data.paths is set but data.source is 'python-stdlib'"),
        (
            "train: {batch_size: 3, gradient_accumulation: 2}",
            "must be a multiple of train.gradient_accumulation",
        ),
        ("objective: {balance_weight: -1}", "objective.balance_weight must not be negative"),
    ],
)
def test_the_real_sections_refuse_what_cannot_be(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "x.yaml").write_text(f"base: ground.yaml\n{text}\n")
    assert main(["validate", str(folder / "x.yaml")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "x.yaml" in err


def test_a_pretrained_model_s_own_tokenizer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "layer_skipping/token"]) == 0
    out = capsys.readouterr().out
    assert "tokenizer of smollm2-135m" in out
    assert "bpe" not in out
