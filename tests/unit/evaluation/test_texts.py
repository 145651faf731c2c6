from pathlib import Path

import pytest
import torch

from layerroute.data.tokenizer import train_bpe, transformers_tokenizer
from layerroute.errors import UserError
from layerroute.evaluation.texts import read_texts, text_batches, tokenize


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["a cat sat on a mat, a cat"] * 3, 270).save(folder)
    return transformers_tokenizer(folder)


def test_each_document_ends_with_end_of_text_and_cannot_end_itself(tokenizer) -> None:
    ids = tokenize(tokenizer, ["a cat", "<|endoftext|>"]).tolist()
    end = tokenizer.eos_token_id
    assert ids.count(end) == 2
    assert ids[-1] == end
    assert tokenizer.decode(ids[:-1]).endswith("<|endoftext|>")
    assert tokenizer.decode(ids[: ids.index(end)]) == "a cat"


def test_every_token_is_in_one_window() -> None:
    batches = text_batches(torch.arange(23), sequence_length=5, batch_size=3)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(3, 5), (1, 5), (1, 3)]
    assert torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist() == list(range(23))
    limited = text_batches(torch.arange(23), sequence_length=5, batch_size=3, limit=2)
    assert [tuple(batch["input_ids"].shape) for batch in limited] == [(2, 5)]
    short = text_batches(torch.arange(3), sequence_length=5, batch_size=3)
    assert [tuple(batch["input_ids"].shape) for batch in short] == [(1, 3)]
    with pytest.raises(UserError, match="1 token"):
        text_batches(torch.arange(1), sequence_length=5, batch_size=3)


def test_files_are_read_as_the_data_part_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(read_texts([str(tmp_path / "a.jsonl")])) == ["one", "two"]
    with pytest.raises(UserError):
        list(read_texts([str(tmp_path / "none.txt")]))
    (tmp_path / "b.txt").write_bytes(b"\x00\x01\x02\xff" * 50)
    with pytest.raises(UserError):
        list(read_texts([str(tmp_path / "b.txt")]))
