import json

import numpy as np
import pytest
import torch

from layerroute.api.calibration import sizes
from layerroute.errors import UserError
from layerroute.routing.controls import hashed_uniform
from layerroute.skipping.calibration import CalibrationConfig, draw_windows


class Letters:
    """One token a word."""

    def __call__(self, text, **_):
        return {"input_ids": [len(word) for word in text.split()]}


def documents(count, words):
    return ["x" * (index % 7 + 1) + " " + "ab cde f ghij " * (words // 4) for index in range(count)]


def test_one_window_from_each_document_that_is_long_enough():
    texts = iter([*documents(3, 40), "short text", *documents(4, 40)])
    first = draw_windows(texts, Letters(), tokens=64, length=16, seed=0)
    assert first.ids.shape == (4, 16) and first.tokens == 64
    rest = list(texts)
    assert len(rest) == 3, "documents that were not needed are left for the next draw"
    assert first.first(33).ids.shape == (2, 16)


def test_windows_are_those_of_the_seed():
    texts = documents(5, 4000)

    def ids(seed):
        return draw_windows(texts, Letters(), tokens=80, length=16, seed=seed)

    assert ids(1).fingerprint == ids(1).fingerprint
    assert ids(1).fingerprint != ids(2).fingerprint


def test_too_little_text_is_an_error_that_says_how_much_there_was():
    with pytest.raises(UserError, match=r"has 3 documents of at least 16 tokens among 4"):
        draw_windows([*documents(3, 40), "short"], Letters(), tokens=64, length=16, seed=0)


def test_text_that_cannot_be_read_to_its_end_is_not_taken_for_one_that_ends():
    def texts():
        yield from documents(6, 40)
        raise UserError("record 6 has no text")

    with pytest.raises(UserError, match="record 6 has no text"):
        draw_windows(texts(), Letters(), tokens=256, length=16, seed=0, least=32)
    found = draw_windows(documents(6, 40), Letters(), tokens=256, length=16, seed=0, least=32)
    assert found.ids.shape == (6, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, "between 0 and 1"),
        ({"budget": 1.0}, "between 0 and 1"),
        ({"budget": float("nan")}, "between 0 and 1"),
        ({"granularity": "sequence_mean"}, "granularity"),
        ({"target": "dens"}, "Did you mean 'dense'"),
        ({"length": 8}, "too short"),
        ({"tokens_heldout": 100}, "less than one window"),
        ({"rank": 0}, "rank"),
        ({"skip_path": "identity"}, "calibration.skip_path: 'identity' is not known"),
        ({"history": 1, "granularity": "token"}, "not token and even"),
        ({"history": 1, "allocation": "cost"}, "not per_layer and cost"),
        ({"rounds": 0}, "rounds"),
        ({"ridge": 0.0}, "above 0"),
        ({"min_share": 1.5}, "a share from 0 to 1"),
        ({"also": [0.4, 0.25]}, "names a budget twice: 0.25, 0.4, 0.25"),
        ({"also": [0.4, 0.4000001]}, "names a budget twice"),
        ({"sink_tokens": 256}, "windows of 256 tokens are too short: the first 256 always run"),
        ({"seed": 2**63}, "a seed has 64 bits"),
        ({"layers": "4-28"}, "calibration.layers is a list of whole numbers, got '4-28'"),
        ({"layers": [4.5]}, "calibration.layers is a list of whole numbers"),
        ({"sink_ids": 5}, "calibration.sink_ids is a list of whole numbers, got 5"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        CalibrationConfig(**{"budget": 0.25, **settings})


def test_a_range_of_layers_and_an_array_of_ids_are_written_as_lists():
    found = CalibrationConfig(budget=0.25, layers=range(4, 7), sink_ids=np.array([0, 2])).to_dict()
    assert json.loads(json.dumps(found))["layers"] == [4, 5, 6] and found["sink_ids"] == [0, 2]


@pytest.mark.parametrize("seed", [2**63 - 1, 1 - 2**63])
def test_the_largest_seeds_draw_too(seed):
    keys = torch.arange(512).view(1, -1)
    drawn = hashed_uniform(keys, 2, seed)
    assert 0.4 < float(drawn.mean()) < 0.6 and not torch.equal(drawn, hashed_uniform(keys, 2, seed - 1))
    assert torch.equal(hashed_uniform(keys, 2, 2**63 - 1), hashed_uniform(keys, 2, -(2**63) - 1))


def test_sizes_of_few_tokens_hold_a_window():
    assert sizes(4096) == sizes(4096, 64)
    assert sizes(4096)["tokens_search"] == 512 and sizes(4096)["tokens_heldout"] == 2048
    CalibrationConfig(budget=0.25, length=1024, **sizes(4096, 1024))
    assert sizes(2048, 1024)["tokens_heldout"] == 2048


def test_layers_are_held_to_the_model():
    assert CalibrationConfig(budget=0.25).skip_config(30).layers == list(range(4, 29))
    assert CalibrationConfig(budget=0.25).skip_config(30).budget == pytest.approx(0.25)
    with pytest.raises(UserError, match="out of range"):
        CalibrationConfig(budget=0.25, layers=[5, 30]).skip_config(30)
