"""Small corpora in temporary folders."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from layerroute.data import DataConfig
from layerroute.data.tokenizer import TokenizerBundle, train_bpe

_WORDS = (
    "the",
    "cat",
    "sat",
    "on a",
    "mat",
    "while",
    "seven",
    "dogs",
    "ran",
    "over",
    "über",
    "naïve",
    "数据",
    "x = y;",
)


def make_texts(count: int, words: int = 60, seed: int = 0) -> list[str]:
    """Return different texts with some words, lines and blanks."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        parts = [draw.choice(_WORDS) + draw.choice((" ", " ", " ", "\n", "  ", "\n\n")) for _ in range(words)]
        texts.append(f"Text {number}. {''.join(parts)}")
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Forty different texts."""
    return make_texts(40)


@pytest.fixture(scope="session")
def bundle(texts: list[str]) -> TokenizerBundle:
    """A BPE tokenizer of 340 entries, trained on ``texts``."""
    return train_bpe(texts, 340)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 30 text files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, text in enumerate(make_texts(30)):
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    """Make a configuration over ``corpus`` with a cache of its own; arguments replace its fields."""

    def make(**changes: object) -> DataConfig:
        fields: dict[str, object] = {
            "source": "files",
            "paths": [str(corpus)],
            "vocabulary_size": 300,
            "sequence_length": 16,
            "validation_share": 0.3,
            "cache_dir": str(tmp_path / "cache"),
        }
        return DataConfig(**{**fields, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSON Lines file of the given records, or of strings as they are."""

    def write(records: list[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
