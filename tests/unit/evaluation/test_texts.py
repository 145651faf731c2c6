import json
from pathlib import Path

import pytest
import torch

from layerroute.data.tokenizer import train_bpe, transformers_tokenizer
from layerroute.data.windows import DocumentEncoder
from layerroute.errors import UserError
from layerroute.evaluation.texts import read_texts, text_batches


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["a cat sat on a mat, a cat"] * 3, 270).save(folder)
    return transformers_tokenizer(folder)


def write(path: Path, *texts: str) -> list[str]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [str(path)]


def test_every_token_is_in_one_window(tokenizer, tmp_path: Path) -> None:
    files = write(tmp_path / "a.jsonl", "a cat sat on a mat", "<|endoftext|>", "a cat " * 9)
    stream = DocumentEncoder.of(tokenizer).stream(read_texts(files)).tolist()
    assert stream.count(tokenizer.eos_token_id) == 3, "a document cannot end itself"
    batches = text_batches(tokenizer, read_texts(files), length=6, batch_size=3)
    *whole, rest = [tuple(batch["input_ids"].shape) for batch in batches]
    assert sum(rows for rows, _ in whole) == len(stream) // 6
    assert set(whole[:-1]) == {(3, 6)}
    assert rest == (1, len(stream) % 6)
    assert torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist() == stream
    limited = text_batches(tokenizer, read_texts(files), length=6, batch_size=3, limit=2)
    assert [tuple(batch["input_ids"].shape) for batch in limited] == [(2, 6)]
    short = text_batches(tokenizer, read_texts(files), length=5000, batch_size=3)
    assert [tuple(batch["input_ids"].shape) for batch in short] == [(1, len(stream))]


def test_no_more_text_is_read_than_windows_are_wanted(tokenizer) -> None:
    texts = iter(["a cat sat on a mat " * 5000] * 50)
    (some,) = text_batches(tokenizer, texts, length=6, batch_size=3, limit=2)
    assert 45 < sum(1 for _ in texts) < 50
    (all_of_them, *_) = text_batches(tokenizer, ["a cat sat on a mat " * 5000] * 2, length=6, batch_size=3)
    assert torch.equal(some["input_ids"], all_of_them["input_ids"][:2])


def test_files_are_read_as_the_data_part_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(read_texts([str(tmp_path / "a.jsonl")])) == ["one", "two"]
    with pytest.raises(UserError):
        list(read_texts([str(tmp_path / "none.txt")]))
    (tmp_path / "b.txt").write_bytes(b"\x00\x01\x02\xff" * 50)
    with pytest.raises(UserError):
        list(read_texts([str(tmp_path / "b.txt")]))
