"""From a configuration to tokens and back: deterministic, cached, rebuilt when damaged, disjoint splits."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerroute.data import (
    DataConfig,
    PreparedData,
    find_prepared,
    list_prepared,
    prepare_data,
)
from layerroute.data import prepare as prepare_module
from layerroute.data.tokenizer import TokenizerBundle
from layerroute.errors import UserError

MakeConfig = Callable[..., DataConfig]


def documents(prepared: PreparedData, split: str) -> list[str]:
    """Decode a split back into its documents."""
    sequence = prepared.train if split == "train" else prepared.validation
    found: list[str] = []
    current: list[int] = []
    for token in sequence.tokens.tolist():
        if token == prepared.end_of_text:
            found.append(prepared.tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    assert not current
    return found


def read_corpus(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]


def test_every_document_is_in_one_split_word_for_word(config: MakeConfig, corpus: Path) -> None:
    prepared = prepare_data(config())
    train, validation = documents(prepared, "train"), documents(prepared, "validation")
    assert sorted(train + validation) == sorted(read_corpus(corpus))
    assert not set(train) & set(validation)
    order = {text: number for number, text in enumerate(read_corpus(corpus))}
    assert [order[text] for text in train] == sorted(order[text] for text in train)
    assert prepared.manifest["train"] == {"documents": len(train), "tokens": len(prepared.train)}
    assert prepared.manifest["validation"] == {
        "documents": len(validation),
        "tokens": len(prepared.validation),
    }
    assert len(validation) > 2


def test_copies_of_a_text_fall_on_one_side(config: MakeConfig, corpus: Path) -> None:
    for number, path in enumerate(sorted(corpus.glob("*.txt"))):
        shutil.copy(path, corpus / f"copy-{(7 * number) % 30}.txt")
    prepared = prepare_data(config())
    assert not set(documents(prepared, "train")) & set(documents(prepared, "validation"))


def test_two_builds_in_different_folders_are_the_same_bytes(
    config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "elsewhere" / "corpus")
    one = prepare_data(config(cache_dir=str(tmp_path / "one")))
    two = prepare_data(
        config(cache_dir=str(tmp_path / "two"), paths=[str(tmp_path / "elsewhere" / "corpus")])
    )
    assert one.folder.name == two.folder.name
    files = sorted(path.name for path in one.folder.iterdir())
    assert files == [
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train.bin",
        "validation.bin",
    ]
    for file in files:
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()
    assert str(tmp_path) not in (one.folder / "manifest.json").read_text()


def test_what_is_cached_is_not_built_again(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_prepared(config()) is None
    first = prepare_data(config())
    monkeypatch.setattr(prepare_module, "train_bpe", None)
    again = prepare_data(config(sequence_length=8))
    assert again.folder == first.folder
    assert again.train.windows() in (2 * first.train.windows(), 2 * first.train.windows() + 1)
    found = find_prepared(config())
    assert found is not None and found.fingerprint == first.fingerprint
    assert [entry for entry, _ in list_prepared(config().cache_folder())] == [first.folder]


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary_size": 310},
        {"validation_share": 0.5},
        {"split_seed": 1},
        {"max_documents": 20},
        {"max_characters": 3000},
    ],
)
def test_other_settings_are_other_data(config: MakeConfig, changes: dict[str, object]) -> None:
    one, two = prepare_data(config()), prepare_data(config(**changes))
    assert one.folder != two.folder
    assert one.fingerprint != two.fingerprint


def test_an_edited_source_is_other_data(config: MakeConfig, corpus: Path) -> None:
    one = prepare_data(config())
    (corpus / "00.txt").write_text("something else")
    assert prepare_data(config()).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "name", ["train.bin", "validation.bin", "tokenizer.json", "tokenizer_config.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_caches_are_rebuilt_with_a_warning_and_never_read(
    config: MakeConfig, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare_data(config())
    tokens = np.array(first.train.tokens), np.array(first.validation.tokens)
    path = first.folder / name
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        position = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(whole)
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(changed)
    caplog.clear()
    assert find_prepared(config()) is None
    assert list_prepared(config().cache_folder()) == []
    again = prepare_data(config())
    assert len(caplog.records) == 1
    assert "is damaged" in caplog.text and name in caplog.text
    assert np.array_equal(again.train.tokens, tokens[0])
    assert np.array_equal(again.validation.tokens, tokens[1])
    assert path.read_bytes() == whole


def test_limits_cut_the_source_where_they_say(config: MakeConfig, corpus: Path) -> None:
    texts = read_corpus(corpus)
    few = prepare_data(config(max_documents=7))
    assert sorted(documents(few, "train") + documents(few, "validation")) == sorted(texts[:7])
    characters = sum(map(len, texts[:5])) + 11
    cut = prepare_data(config(max_characters=characters))
    kept = documents(cut, "train") + documents(cut, "validation")
    assert sorted(kept) == sorted([*texts[:5], texts[5][:11]])
    exact = prepare_data(config(max_characters=characters - 11))
    assert sorted(documents(exact, "train") + documents(exact, "validation")) == sorted(texts[:5])


def test_limits_do_not_read_what_comes_after(config: MakeConfig, corpus: Path) -> None:
    (corpus / "10.jsonl").write_text("not json")
    with pytest.raises(UserError, match="not valid JSON"):
        prepare_data(config())
    assert prepare_data(config(max_documents=5)).manifest["train"]["documents"] < 5


def test_the_tokenizer_has_seen_the_training_documents_alone(
    config: MakeConfig, corpus: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("zzqzzq " * 2000)
    prepared = prepare_data(config(validation_paths=[str(held_out)]))
    vocabulary = prepared.tokenizer.get_vocab()
    assert not [token for token in vocabulary if "zq" in token]
    (corpus / "zz.txt").write_text("zzqzzq " * 2001)
    prepared = prepare_data(config(validation_paths=[str(held_out)]))
    assert [token for token in prepared.tokenizer.get_vocab() if "zq" in token]


def test_the_tokenizer_is_trained_on_the_training_side_of_a_split(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = prepare_module.train_bpe

    def record(texts: Iterable[str], vocabulary_size: int) -> TokenizerBundle:
        seen.extend(texts)
        return train(seen, vocabulary_size)

    monkeypatch.setattr(prepare_module, "train_bpe", record)
    trained = documents(prepare_data(config()), "train")
    assert seen == trained


def test_validation_paths_replace_the_split_and_never_train(config: MakeConfig, corpus: Path) -> None:
    texts = read_corpus(corpus)
    prepared = prepare_data(config(validation_paths=[str(corpus / "0[0-4].txt")]))
    assert documents(prepared, "validation") == texts[:5]
    assert documents(prepared, "train") == texts[5:]
    assert prepared.manifest["source"]["also_in_validation"] == 5
    with pytest.raises(UserError, match=r"is also one of data\.validation_paths"):
        prepare_data(config(validation_paths=[str(corpus)]))


def test_one_document_cannot_be_split(config: MakeConfig, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"holds 1 document, and a split by document needs two"):
        prepare_data(config(paths=[str(corpus / "00.txt")]))
    parted = prepare_data(config(paths=[str(corpus / "00.txt")], document_separator="\n"))
    assert parted.manifest["train"]["documents"] > 1
    assert parted.manifest["validation"]["documents"] >= 1


def test_large_vocabularies_need_the_wider_type(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = prepare_data(config())
    assert narrow.manifest["dtype"] == "uint16"
    assert (narrow.folder / "train.bin").stat().st_size == 2 * len(narrow.train)
    tokens = narrow.train.tokens.tolist()
    shutil.rmtree(narrow.folder)
    monkeypatch.setattr(prepare_module, "_LARGEST_UINT16_VOCABULARY", 299)
    wide = prepare_data(config())
    assert wide.manifest["dtype"] == "uint32"
    assert (wide.folder / "train.bin").stat().st_size == 4 * len(wide.train)
    assert wide.train.tokens.tolist() == tokens
    assert wide.fingerprint != narrow.fingerprint


def test_a_pretrained_tokenizer_brings_its_own_vocabulary(config: MakeConfig, tmp_path: Path) -> None:
    trained = prepare_data(config())
    shutil.copytree(trained.folder, tmp_path / "pretrained")
    loaded = prepare_data(config(tokenizer=str(tmp_path / "pretrained"), vocabulary_size=9))
    assert loaded.vocabulary_size == trained.vocabulary_size == 300
    assert np.array_equal(loaded.train.tokens, trained.train.tokens)
    assert loaded.describe()["tokenizer"].startswith("pretrained (")
    assert loaded.folder != trained.folder


def test_a_tokenizer_that_cannot_be_used_is_told_before_the_source_is_read(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    monkeypatch.setattr("layerroute.data.prepare.fill", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"give a folder with an intact tokenizer\.json"):
        prepare_data(config(tokenizer=str(tmp_path / "tokenizer.json")))


def test_it_describes_itself_for_the_record(config: MakeConfig) -> None:
    prepared = prepare_data(config())
    described = prepared.describe()
    assert described == {
        "source": "files 00.txt, 01.txt, 02.txt and 27 more",
        "fingerprint": prepared.fingerprint,
        "tokenizer": described["tokenizer"],
        "vocabulary_size": 300,
        "train_tokens": len(prepared.train),
        "validation_tokens": len(prepared.validation),
    }
    digest = hashlib.sha256((prepared.folder / "tokenizer.json").read_bytes()).hexdigest()
    assert described["tokenizer"] == f"bpe-300 ({digest[:12]})"
    assert json.loads(json.dumps(described)) == described
    assert prepared.end_of_text == prepared.tokenizer.eos_token_id
    assert prepared.train.sequence_length == 16


def test_a_source_that_changes_while_it_is_read_is_not_cached(
    config: MakeConfig, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the new text would be found under the old text's name for ever."""
    read = prepare_module.fill

    def write_meanwhile(*arguments: Any, **named: Any) -> None:
        (corpus / "29.txt").write_text("new")
        read(*arguments, **named)

    monkeypatch.setattr(prepare_module, "fill", write_meanwhile)
    with pytest.raises(UserError, match="changed while they were read"):
        prepare_data(config())
    assert list_prepared(config().cache_folder()) == []
    monkeypatch.setattr(prepare_module, "fill", read)
    prepared = prepare_data(config())
    assert "new" in documents(prepared, "train") + documents(prepared, "validation")


def test_installed_source_is_data_too(tmp_path: Path) -> None:
    prepared = prepare_data(
        DataConfig(
            source="installed-packages", packages=["packaging"], vocabulary_size=300, cache_dir=str(tmp_path)
        )
    )
    assert prepared.manifest["train"]["documents"] > 5
    assert prepared.describe()["source"].startswith("installed-packages packaging ")


def test_progress_is_drawn_on_a_terminal_only(config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_data(config())
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
