import math

import pytest

from layerroute.lab import format as f


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (4.1234, 3, "4.123"),
        (-0.5, 1, "−0.5"),
        (-0.0001, 2, "0.00"),
        (12345.6, 0, "12,346"),
        (None, 3, "–"),
        (math.nan, 3, "–"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert f.number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_999, "1.00 M"),
        (141_700_000, "142 M"),
        (1234.5, "1.23 k"),
        (65_536, "65.5 k"),
        (None, "–"),
    ],
)
def test_count(value: float | None, text: str) -> None:
    assert f.count(value) == text


def test_count_with_unit() -> None:
    assert f.count(173_000, "FLOP") == "173 kFLOP"
    assert f.count(12, "FLOP") == "12 FLOP"


@pytest.mark.parametrize(("rate", "text"), [(1e-3, "1e-3"), (2.5e-4, "2.5e-4"), (0.1, "1e-1"), (None, "–")])
def test_learning_rate(rate: float | None, text: str) -> None:
    assert f.learning_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (180, "3.0 min"), (9000, "2.5 h"), (None, "–")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert f.duration(seconds) == text


def test_signs_and_intervals() -> None:
    assert f.signed(0.02, 2) == "+0.02"
    assert f.signed(-0.02, 2) == "−0.02"
    assert f.signed(None) == "–"
    assert f.signed_percent(0.07) == "+7.0%"
    assert f.plus_minus(4.1, None) == "4.100"
    assert f.plus_minus(4.1, 0.02) == "4.100 ± 0.020"
    assert f.probability(0.0004) == "<0.001"
    assert f.probability(0.0444) == "0.044"


def test_words() -> None:
    assert f.listing([]) == ""
    assert f.listing(["a"]) == "a"
    assert f.listing(["a", "b", "c"]) == "a, b and c"
    assert f.plural(1, "seed") == "1 seed"
    assert f.plural(2, "entry", "entries") == "2 entries"
