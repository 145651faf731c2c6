"""Recall is measured at answers alone, by length and by distance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerroute.data.configuration import DataConfig
from layerroute.data.recall.configuration import RecallConfig
from layerroute.data.recall.prepared import RecallData
from layerroute.evaluation.recall import distances, recall_by_distance, recall_by_length


class Lookup(nn.Module):
    """Knows the answer by looking for the token's first appearance, as far back as ``reach`` tokens."""

    def __init__(self, vocabulary: int, reach: int) -> None:
        super().__init__()
        self.vocabulary, self.reach = vocabulary, reach
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for place, token in enumerate(ids):
                first = ids.index(token)
                if first < place and place - first <= self.reach:
                    logits[row, place, ids[first + 1]] = 100.0
        return SimpleNamespace(logits=logits)


@pytest.fixture
def data() -> RecallData:
    recall = RecallConfig(pairs=4, keys=8, values=8)
    return RecallData(DataConfig(source="recall", recall=recall, sequence_length=32))


def test_a_model_that_looks_everywhere_is_right_at_every_length(data: RecallData) -> None:
    model = Lookup(data.vocabulary_size, reach=1000)
    points = recall_by_length(model, data, [1, 2, 4], rows=16, batch_size=8)
    assert [(p["multiple"], p["length"], p["accuracy"]) for p in points] == [
        (1, 32, 1.0),
        (2, 64, 1.0),
        (4, 128, 1.0),
    ]
    assert [p["answers"] for p in points] == [16 * 4, 8 * 4, 8 * 4]
    assert points[0]["loss"] < 1e-3
    assert points[0]["mean_rate"] is None


def test_what_lies_out_of_reach_is_wrong_and_shows_by_distance(data: RecallData) -> None:
    model = Lookup(data.vocabulary_size, reach=15)
    near, far = (recall_by_length(model, data, [m], rows=16, batch_size=8)[0]["accuracy"] for m in (1, 4))
    assert 0.2 < far + 0.2 < near < 0.9
    points = recall_by_distance(model, data, rows=16, batch_size=8)
    assert sum(point["answers"] for point in points) == 16 * 4
    assert {p["accuracy"] for p in points if p["to"] <= 15} == {1.0}
    assert all(p["accuracy"] < 0.5 for p in points if p["from"] >= 16)


def test_distances_are_from_question_to_key() -> None:
    ids = np.array([[5, 9, 6, 8, 0, 0, 6, 8, 5, 9]])
    answers = np.zeros_like(ids, dtype=bool)
    answers[0, [7, 9]] = True
    assert distances(ids, answers)[0, [7, 9]].tolist() == [4, 8]
    assert distances(ids, answers).sum() == 12


def test_of_a_key_that_is_told_twice_the_last_time_counts() -> None:
    ids = np.array([[5, 9, 6, 8, 5, 7, 0, 5, 7, 5, 7]])
    answers = np.zeros_like(ids, dtype=bool)
    answers[0, [8, 10]] = True
    assert distances(ids, answers, writes=2)[0, [8, 10]].tolist() == [3, 5]
