import pytest

from layerroute.errors import UserError
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
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        CalibrationConfig(**{"budget": 0.25, **settings})


def test_layers_are_held_to_the_model():
    assert CalibrationConfig(budget=0.25).skip_config(30).layers == list(range(4, 29))
    assert CalibrationConfig(budget=0.25).skip_config(30).budget == pytest.approx(0.25)
    with pytest.raises(UserError, match="out of range"):
        CalibrationConfig(budget=0.25, layers=[5, 30]).skip_config(30)
