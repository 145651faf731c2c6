import numpy as np
import pytest
import torch

from layerroute.data.sequence import TokenSequence
from layerroute.errors import UserError
from layerroute.evaluation.texts import split_rows
from layerroute.training.samples import TrainingWindows, collate, evaluation_windows, model_inputs


def sequence(windows: int, length: int = 4) -> TokenSequence:
    tokens = np.arange(windows * length, dtype=np.uint16)
    return TokenSequence(tokens, end_of_text=5, sequence_length=length)


def test_every_window_comes_once_before_any_comes_twice() -> None:
    samples = TrainingWindows(sequence(7), samples=21, batch_size=3, seed=1)
    visited = [samples.window(position) for position in range(21)]
    epochs = [visited[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_sample_depends_on_seed_and_position_alone() -> None:
    one = TrainingWindows(sequence(7), samples=20, batch_size=2, seed=1)
    other = TrainingWindows(sequence(7), samples=14, batch_size=7, seed=1)
    late = [one[position]["input_ids"].tolist() for position in (13, 2, 9)]  # out of order, across epochs
    assert late == [other[position]["input_ids"].tolist() for position in (13, 2, 9)]
    changed = TrainingWindows(sequence(7), samples=20, batch_size=2, seed=2)
    assert [changed.window(p) for p in range(7)] != [one.window(p) for p in range(7)]


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    samples = TrainingWindows(sequence(5), samples=10, batch_size=5, seed=3)
    together = samples.__getitems__([4, 0, 7])
    assert [row["input_ids"].tolist() for row in together] == [
        samples[p]["input_ids"].tolist() for p in (4, 0, 7)
    ]


def test_labels_are_the_inputs_and_the_model_shifts_them() -> None:
    batch = collate([{"input_ids": torch.tensor([1, 2])}, {"input_ids": torch.tensor([3, 4])}])
    assert batch["labels"].tolist() == batch["input_ids"].tolist() == [[1, 2], [3, 4]]


def test_less_than_one_batch_is_told() -> None:
    with pytest.raises(UserError, match="smaller batch"):
        TrainingWindows(sequence(3), samples=4, batch_size=4, seed=0)
    with pytest.raises(UserError):
        evaluation_windows(sequence(0), 3)


def test_documents_are_told_apart_on_request() -> None:
    samples = TrainingWindows(sequence(3), samples=3, batch_size=1, seed=0, boundaries="document_ids")
    rows = {
        tuple(row["input_ids"].tolist()): row["document_ids"].tolist()
        for row in (samples[i] for i in range(3))
    }
    assert rows[(4, 5, 6, 7)] == [0, 0, 1, 1]  # 5 ends a document
    assert "document_ids" in collate([samples[0], samples[1]])


def test_positions_begin_anew_in_each_document() -> None:
    samples = TrainingWindows(sequence(3), samples=3, batch_size=1, seed=0, boundaries="position_ids")
    rows = {
        tuple(row["input_ids"].tolist()): row["position_ids"].tolist()
        for row in (samples[i] for i in range(3))
    }
    assert rows == {(0, 1, 2, 3): [0, 1, 2, 3], (4, 5, 6, 7): [0, 1, 0, 1], (8, 9, 10, 11): [0, 1, 2, 3]}
    batch = model_inputs(sequence(3), evaluation_windows(sequence(3), 3), "position_ids")
    assert batch["position_ids"][1].tolist() == [0, 1, 0, 1] and "document_ids" not in batch


def test_evaluation_windows_are_spread_over_the_split_and_fixed() -> None:
    assert evaluation_windows(sequence(10), 5) == [0, 2, 4, 6, 8]
    assert evaluation_windows(sequence(3), 99) == [0, 1, 2]
    batches = split_rows(model_inputs(sequence(10), [0, 2, 4, 6, 8], None), 2)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]
    assert [int(row[0]) // 4 for batch in batches for row in batch["input_ids"]] == [0, 2, 4, 6, 8]
