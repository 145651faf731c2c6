"""The ``hub`` source over a local dataset folder, and its errors; the network is never touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from layerroute.data.kinds import KindConfig
from layerroute.data.sources.hub import HubSource, hub_user_error
from layerroute.errors import UserError


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": f"row {number}", "number": number} for number in range(20)] + [{"text": "", "number": 0}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def source(dataset: Path | str, **changes: Any) -> HubSource:
    return HubSource(KindConfig(dataset=str(dataset), **changes))


def test_rows_stream_in_order_without_the_empty_ones(dataset: Path) -> None:
    found = list(source(dataset).documents())
    assert [document.text for document in found] == [f"row {number}" for number in range(20)]
    assert found[3].name == f"{dataset}:train[3]"
    assert source(dataset).describe() == "hub corpus:train"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_field": "texts"}, "has no column 'texts'; set data.text_field. Did you mean 'text'?"),
        ({"text_field": "number"}, "holds int in row 0, not text"),
        ({"split": "test"}, "Bad split: test"),
        ({"subset": "fr"}, "BuilderConfig 'fr' not found"),
    ],
)
def test_parts_that_are_not_there_are_told(dataset: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        list(source(dataset, **changes).documents())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_says_so_at_once() -> None:
    """The tests' own HF_HUB_OFFLINE stands for the missing network."""
    with pytest.raises(UserError, match="'owner/name' needs the Hugging Face hub, which cannot be reached"):
        list(source("owner/name").documents())


def test_a_stream_that_breaks_off_is_told(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def broken(*args: object, **named: object) -> Iterator[dict[str, str]]:
        yield {"text": "one"}
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    stream = source(dataset).documents()
    assert next(stream).text == "one"
    with pytest.raises(UserError, match=r"cannot be reached from here \(ConnectionResetError\)"):
        next(stream)


def test_the_commit_found_is_the_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[object] = []

    def load(name: str, subset: str | None, **named: object) -> list[dict[str, str]]:
        asked.append((name, subset, named))
        return [{"text": "x"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    told = lambda _, name, revision, timeout: SimpleNamespace(sha=f"sha of {revision}")  # noqa: E731
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", told)
    list(source("owner/name", subset="en", revision="v1").documents())
    assert asked == [
        ("owner/name", "en", {"split": "train", "revision": "sha of v1", "streaming": True}),
    ]


def test_errors_of_the_hub_tell_the_name_from_the_network() -> None:
    from huggingface_hub import errors

    def http(kind: type[Exception]) -> Exception:
        error = kind.__new__(kind)
        Exception.__init__(error, "404 Client Error.\n\nRepository Not Found")
        return error

    assert "is gated; ask for access" in str(hub_user_error("x", http(errors.GatedRepoError)))
    assert "does not exist on the Hugging Face hub" in str(
        hub_user_error("x", http(errors.RepositoryNotFoundError))
    )
    assert "cannot be named so" in str(hub_user_error("x", http(errors.RevisionNotFoundError)))
    wrapped = RuntimeError("failed")
    wrapped.__cause__ = TimeoutError()
    assert "cannot be reached from here" in str(hub_user_error("x", wrapped))
    assert str(hub_user_error("x", ValueError("odd\nthing"))) == "x cannot be read: odd thing"


def test_fingerprints_follow_the_name_or_a_local_folders_content(dataset: Path) -> None:
    prints = {
        source("a/b").fingerprint(),
        source("a/b", subset="x").fingerprint(),
        source("a/b", split="x").fingerprint(),
        source("a/b", revision="x").fingerprint(),
        source("a/b", text_field="x").fingerprint(),
        source(dataset).fingerprint(),
    }
    (dataset / "train.jsonl").write_text('{"text": "other"}\n')
    prints.add(source(dataset).fingerprint())
    assert len(prints) == 7
