"""Result records: what is written is read back, what does not fit is named, what is there stays whole."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.errors import UserError
from layerroute.liveness import hold
from layerroute.records import KILLED, provenance, read_record, utc_now, write_record


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "schema": 1,
        "run": "dynamic-seed42",
        "arm": "dynamic",
        "capability": "attention_routing",
        "seed": 42,
        "status": "completed",
        "error": None,
        "command": "layerroute train recipes/attention_routing/dynamic.yaml",
        "started": utc_now(),
        "finished": utc_now(),
        "recipe": {"name": "dynamic"},
        "metrics": {
            "validation_loss": 3.2,
            "validation_perplexity": 24.5,
            "validation_accuracy": 0.31,
            "best_validation_loss": 3.1,
            "best_step": 90,
            "train_loss": 3,
            "bigram_loss": None,
            "steps": 100,
        },
        "curves": "curves.jsonl",
        "token_routes": None,
        "routing": {
            "sites": ["layer1.mixer", "layer2.mixer"],
            "paths": ["gdn", "softmax"],
            "expensive_path": "softmax",
            "rate": {"layer1.mixer": 0.4, "layer2.mixer": 0.6},
            "entropy": {"layer1.mixer": 0.6, "layer2.mixer": 0.5},
            "mean_rate": 0.5,
            "balance_loss": 1.01,
            "tokens": 1000,
            "router": "parallel",
            "control": None,
            "causal": True,
            "context": "full_context",
            "estimator": "gumbel_st",
        },
        "flops": {
            "forward_per_token": 1e9,
            "routed_per_token": 9e8,
            "by_part": {"router": 1e3},
            "by_path": {"gdn": 1e6, "softmax": 2e6},
            "executed_per_token": None,
            "context_length": 256,
        },
        "timing": {"train_seconds": 8.2, "tokens_per_second": 9000.0, "evaluation_seconds": 1.0},
        "parameters": {"total": 100, "trainable": 100, "by_part": {"router": 4}},
        "data": {
            "source": "python-stdlib",
            "fingerprint": "ab12",
            "tokenizer": "bpe",
            "vocabulary_size": 4096,
            "train_tokens": 10000,
            "validation_tokens": 1000,
        },
        "tokens_seen": 25600,
        **provenance(),
    }


def test_round_trip_by_run_directory_and_by_file(tmp_path: Path, record: dict[str, Any]) -> None:
    written = write_record(tmp_path / "run", record)
    assert written == tmp_path / "run" / "record.json"
    assert read_record(tmp_path / "run") == record == read_record(written)
    assert write_record(tmp_path / "results" / "one.json", record) == tmp_path / "results" / "one.json"
    assert read_record(tmp_path / "results" / "one.json") == record


def test_extra_keys_are_kept(tmp_path: Path, record: dict[str, Any]) -> None:
    record["metrics"]["recall"] = 0.9
    record["note"] = "kept"
    write_record(tmp_path, record)
    assert read_record(tmp_path)["metrics"]["recall"] == 0.9
    assert read_record(tmp_path)["note"] == "kept"


def test_scalars_of_numpy_become_numbers_and_non_finite_ones_null(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    record["status"] = "failed"
    record["metrics"] = {
        "validation_loss": np.float32(2.5),
        "best_validation_loss": float("inf"),
        "steps": np.int64(3),
    }
    write_record(tmp_path, record)
    assert read_record(tmp_path)["metrics"] == {
        "validation_loss": 2.5,
        "best_validation_loss": None,
        "steps": 3,
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "schema is 2; it must be 1"),
        ("capability", 4, "capability is 4; it must be a string"),
        ("status", "done", "status is 'done'"),
        ("seed", "42", "seed is '42'; it must be an integer"),
        ("seed", True, "seed is True; it must be an integer"),
        ("seed", 4.5, "seed is 4.5; it must be an integer"),
        ("arm", None, "arm is null; it must be a string"),
        ("recipe", [], r"recipe is \[\]; it must be a mapping"),
        ("metrics.validation_loss", "low", "metrics.validation_loss is 'low'; it must be a number"),
        ("metrics.validation_loss", float("nan"), "metrics.validation_loss is null"),
        ("metrics.validation_accuracy", 31.0, "metrics.validation_accuracy is 31.0; a share must be in 0..1"),
        ("routing.rate", {"layer1.mixer": 0.5}, "routing.rate has the sites"),
        ("routing.rate.layer1.mixer", 40.0, "routing.rate.layer1.mixer is 40.0"),
        ("routing.sites", "layer1.mixer", "routing.sites is 'layer1.mixer'; it must be a list"),
        ("routing.paths", ["gdn", 1], r"routing.paths\[1\] is 1; it must be a string"),
        ("routing.expensive_path", "run", "routing.expensive_path is 'run'"),
        ("parameters.by_part", {"router": 4.5}, "parameters.by_part.router is 4.5; it must be an integer"),
        ("dirty", "no", "dirty is 'no'; it must be true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    tmp_path: Path, record: dict[str, Any], key: str, value: Any, message: str
) -> None:
    _set(record, key, value)
    with pytest.raises(ValueError, match=message):
        write_record(tmp_path, record)
    assert not list(tmp_path.iterdir()), "a record that does not fit must not be written"


@pytest.mark.parametrize(
    "key", ["run", "hardware", "metrics", "metrics.steps", "flops.by_part", "routing.mean_rate", "finished"]
)
def test_a_missing_key_is_named(tmp_path: Path, record: dict[str, Any], key: str) -> None:
    write_record(tmp_path, record)
    _delete(record, key)
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"{key} is missing"):
        read_record(tmp_path)


def test_only_a_completed_run_owes_its_results(tmp_path: Path, record: dict[str, Any]) -> None:
    for key in ("metrics", "flops", "timing", "parameters", "data", "tokens_seen", "finished", "curves"):
        del record[key]
    record["status"] = "running"
    record["routing"] = {"sites": ["layer1.mixer"], "entropy": {"layer1.mixer": None}}
    write_record(tmp_path, record)
    with hold(tmp_path):
        assert read_record(tmp_path) == record
    # Nobody trains there any more, and the process that did could not say so.
    assert read_record(tmp_path) == {**record, "status": "interrupted", "error": KILLED}
    record["status"] = "interrupted"
    record["timing"] = {"train_seconds": None}
    write_record(tmp_path, record)
    record["timing"] = {"train_seconds": "long"}
    with pytest.raises(ValueError, match=r"timing\.train_seconds is 'long'"):
        write_record(tmp_path, record)


def test_optional_keys_may_be_absent_from_a_completed_record(tmp_path: Path, record: dict[str, Any]) -> None:
    del record["metrics"]["bigram_loss"], record["routing"]["context"], record["flops"]["executed_per_token"]
    write_record(tmp_path, record)
    assert "bigram_loss" not in read_record(tmp_path)["metrics"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, "\x00\x01"])
def test_a_file_that_is_no_record_is_a_user_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UserError, match=r"record\.json is not a"):
        read_record(tmp_path)


def test_a_binary_file_and_a_missing_one_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not valid JSON"):
        read_record(tmp_path)
    with pytest.raises(UserError, match="no result record at"):
        read_record(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_older_record_and_no_litter(
    tmp_path: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path, record)
    older = copy.deepcopy(record)
    record["seed"] = 43

    def full_disk(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_record(tmp_path, record)
    assert read_record(tmp_path) == older
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def _set(record: dict[str, Any], dotted: str, value: Any) -> None:
    section, last = _walk(record, dotted)
    section[last] = value


def _delete(record: dict[str, Any], dotted: str) -> None:
    section, last = _walk(record, dotted)
    del section[last]


def _walk(record: dict[str, Any], dotted: str) -> tuple[dict[str, Any], str]:
    # At most three levels; the last may itself hold a dot, as the name of a site does.
    first, *rest = dotted.split(".", 2)
    section = record
    for key in rest:
        section, first = section[first], key
    return section, first


def test_every_damaged_byte_and_every_truncation_is_found(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_record(tmp_path, record)
    whole = path.read_bytes()
    draw = random.Random(0)
    for position in [*range(40), *range(len(whole) - 120, len(whole)), *draw.sample(range(len(whole)), 300)]:
        path.write_bytes(
            whole[:position] + bytes([whole[position] ^ 1 << draw.randrange(8)]) + whole[position + 1 :]
        )
        with pytest.raises(UserError):
            read_record(tmp_path)
        path.write_bytes(whole[:position])
        with pytest.raises(UserError):
            read_record(tmp_path)
    path.write_bytes(whole)
    assert read_record(tmp_path) == record


def test_a_record_changed_on_purpose_is_read_without_its_seal(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write_record(tmp_path, record)
    content = json.loads(path.read_text())
    content["arm"] = "mine"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is damaged.*remove its keys 'sealed' and 'checksum'"):
        read_record(tmp_path)
    write_record(tmp_path, content)  # what is read with its seal and written again gets a new one
    assert read_record(tmp_path)["arm"] == "mine"
    del content["sealed"], content["checksum"]
    path.write_text(json.dumps(content))
    assert read_record(tmp_path)["arm"] == "mine"
