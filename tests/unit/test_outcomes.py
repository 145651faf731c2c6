"""The one rule of verdicts, over every corner that a difference can be in."""

from __future__ import annotations

from itertools import product
from math import nan

import pytest

from layerroute.outcomes import Outcome, Side, outcome_at_equal_cost, outcome_of

SIDES: tuple[Side | None, ...] = (None, "subject", "rival")
INTERVALS: dict[str, tuple[float | None, float | None] | None] = {
    "below 0": (-0.3, -0.1),
    "above 0": (0.1, 0.3),
    "around 0": (-0.1, 0.3),
    "up to 0": (-0.3, 0.0),
    "from 0": (0.0, 0.3),
    "0 alone": (0.0, 0.0),
    "a point": (0.2, 0.2),
    "no number": (nan, nan),
    "one seed": (None, None),
    "half of one": (-0.2, None),
    "unpaired": None,
}
P_VALUES = (None, 0.0, 0.049, 0.05, 0.9, nan)
"""None: nothing tested it. 5 % is not below 5 %."""
BARRED = (None, *(one for one in Outcome if not one.comparable))
CORNERS = list(product(P_VALUES, (True, False), BARRED))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", INTERVALS)
def test_no_corner_says_more_than_its_numbers_carry(name: str, side: Side | None) -> None:
    for p, lower_is_better, barred in CORNERS:
        said = outcome_of(INTERVALS[name], p=p, lower_is_better=lower_is_better, read_off=side, barred=barred)
        wins = (name == "below 0") is lower_is_better
        made_worse = side == ("rival" if wins else "subject")
        if barred is not None:
            assert said is barred, "what may not be compared is not"
        elif name == "unpaired":
            assert said is Outcome.UNPAIRED
        elif name in ("one seed", "half of one"):
            assert said is Outcome.ONE_SEED, "whatever p is"
        elif name not in ("below 0", "above 0", "a point"):
            assert said is Outcome.NO_DIFFERENCE, "an interval that touches 0 is on neither side of it"
        elif p not in (None, 0.0, 0.049):
            assert said is (Outcome.NO_DIFFERENCE if made_worse else Outcome.NOT_CORRECTED)
        else:
            assert said == ("wins" if wins else "loses") + (", as read" if made_worse else "")
            assert said.certain is not made_worse and said.plain.certain


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", INTERVALS)
def test_turned_round_the_opposite_is_said(name: str, side: Side | None) -> None:
    """Rival and subject change places; then the sign of a metric is turned, and what is better with it."""
    opposite = {"wins": "loses", "loses": "wins"}
    ends = INTERVALS[name]
    turned = None if ends is None else tuple(None if end is None else -end for end in reversed(ends))
    other: Side | None = {None: None, "subject": "rival", "rival": "subject"}[side]
    for p, lower, barred in CORNERS:
        said = outcome_of(ends, p=p, lower_is_better=lower, read_off=side, barred=barred)
        back = outcome_of(turned, p=p, lower_is_better=lower, read_off=other, barred=barred)  # type: ignore[arg-type]
        word, _, read = said.partition(", ")
        assert back.partition(", ") == (opposite.get(word, word), ", " if read else "", read)
        assert said is outcome_of(
            turned,  # type: ignore[arg-type]
            p=p, lower_is_better=not lower, read_off=side, barred=barred,
        )  # fmt: skip


def test_a_record_without_equal_cost_has_no_verdict() -> None:
    assert outcome_at_equal_cost(None) is Outcome.UNEQUAL_COST
    assert outcome_at_equal_cost({"mean": -0.1, "low": -0.2, "high": 0.0}) is Outcome.NO_DIFFERENCE
    assert outcome_at_equal_cost({"mean": -0.1, "low": -0.2, "high": -0.01}) is Outcome.WINS
