"""What a data section may hold, and what each wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerroute.data import DataConfig
from layerroute.errors import UserError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source": "file", "paths": ["a"]}, "Did you mean 'files'"),
        ({"source": "files"}, "data.paths is empty; set data.paths"),
        ({"source": "hub", "max_documents": 1}, "data.dataset is empty"),
        ({"source": "installed-packages"}, "data.packages is empty"),
        ({"paths": ["a.txt"]}, "set data.source to 'files'"),
        ({"dataset": "a/b"}, "set data.source to 'hub'"),
        ({"packages": ["a"]}, "set data.source to 'installed-packages'"),
        ({"source": "hub", "dataset": "a/b"}, "set data.max_documents or data.max_characters"),
        ({"source": "files", "paths": "a.txt"}, "must be a list"),
        ({"source": "files", "paths": [""]}, "non-empty strings"),
        ({"vocabulary_size": 256}, "needs 257 to"),
        ({"vocabulary_size": 1 << 30}, "needs 257 to"),
        ({"sequence_length": 1}, "2 tokens or more"),
        ({"validation_share": 0.0}, "between 0 and 1"),
        ({"validation_share": 1.0}, "between 0 and 1"),
        ({"max_documents": 0}, "1 or more"),
        ({"max_characters": -5}, "1 or more"),
        ({"tokenizer": ""}, "its default is 'bpe'"),
        ({"source": "files", "paths": ["a"], "document_separator": ""}, "leave it out"),
        ({"document_separator": "x"}, "is for data.source files"),
        ({"subset": "en"}, "set data.source to 'hub'"),
        ({"split": "test"}, "leave data.split out"),
        ({"source": "files", "paths": ["a"], "revision": "main"}, "leave data.revision out"),
        ({"text_field": "body"}, "data.text_field is for data.source files and hub"),
        ({"source": "kinds", "text_field": "body"}, "set it in data.kinds"),
        ({"source": "recall", "recall": {}, "validation_paths": ["a"]}, "leave data.validation_paths out"),
    ],
)
def test_wrong_settings_are_told_with_the_way_out(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        DataConfig(**fields)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "data." in str(caught.value)


def test_the_field_of_texts_is_that_of_validation_paths_too() -> None:
    assert DataConfig(validation_paths=["a.jsonl"], text_field="body").text_field == "body"


def test_vocabulary_size_is_free_with_a_pretrained_tokenizer() -> None:
    assert DataConfig(tokenizer="gpt2", vocabulary_size=1).tokenizer == "gpt2"


def test_cache_folder_is_the_setting_then_the_variable_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERROUTE_CACHE", "/from/variable")
    assert DataConfig(cache_dir="/from/setting").cache_folder() == Path("/from/setting")
    assert DataConfig().cache_folder() == Path("/from/variable")
    monkeypatch.delenv("LAYERROUTE_CACHE")
    monkeypatch.setenv("HOME", "/at/home")
    assert DataConfig().cache_folder() == Path("/at/home/.cache/layerroute")
    with pytest.raises(
        UserError, match="~nobody-here/cache begins with a home folder that is not known here"
    ):
        DataConfig(cache_dir="~nobody-here/cache").cache_folder()
