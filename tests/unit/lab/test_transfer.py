"""What a transfer record comes to: verdicts at equal cost alone, and the arm that routing has least lead over."""

from __future__ import annotations

import pytest

from layerroute.lab.transfer import (
    first_screen,
    gap_of,
    greedy_of,
    points_of,
    reference_of,
    summary,
    titles,
    transfer_table,
)
from layerroute.outcomes import Outcome, outcome_at_equal_cost


def arm(saved=0.24, gap=None, title="static prune, greedy by loss"):
    section = None if gap is None else {"mean": gap[0], "low": gap[1], "high": gap[2], "worst": gap[3]}
    return {"title": title, "saved": saved, "loss": 3.0, "at_equal_cost": section}


def row(kind, greedy, *, home=False, other=None, budget=0.25, left_out=None):
    arms = {
        "static_influence": arm(gap=other, title="static prune, block influence"),
        "static_greedy": arm(gap=greedy),
    }
    return {"kind": kind, "home": home, "budget": budget, "served": 0.2, "left_out": left_out, "arms": arms}


RECORD = {
    "rows": [
        row("prose", (-0.1, -0.12, -0.08, 0.3), other=(-0.02, -0.04, 0.01, 0.4)),
        row("code", (0.05, 0.01, 0.09, 0.8)),
        row("maths", None),
        row(
            "home without prose",
            (-0.2, -0.3, -0.1, 0.0),
            other=(-0.3, -0.4, -0.2, 0.0),
            home=True,
            left_out="prose",
        ),
    ]
}


def test_rows_without_equal_cost_have_no_verdict():
    table = transfer_table(RECORD)
    said = ["cannot be told", "loses", "no verdict: unequal cost", "wins"]
    assert [line.cells[-1].text for line in table.rows] == said
    assert [line.cells[6].text for line in table.rows] == ["−0.020", "+0.050", "–", "−0.200"]
    assert table.rows[2].cells[6].value is None, "a score that was not reached is missing, never 0"
    assert [line.cells[1].text for line in table.rows] == ["away", "away", "away", "home"]
    assert any("no verdict" in note for note in table.notes)


def test_the_summary_counts_what_has_a_verdict():
    away, home = summary(RECORD)
    assert away.startswith(
        "25% away: routing wins on 0, cannot be told on 1 and loses on 1 of 2 texts; mean +0.015 nats"
    )
    assert "least lead on code (+0.050), worst window +0.80 (code). 1 of 3 texts have no verdict." in away
    assert home.startswith("25% home: routing wins on 1")
    assert summary({"rows": [row("maths", None)]}) == ["25% away: no verdict. 1 of 1 texts have no verdict."]


def test_the_best_static_arm_is_the_one_with_least_lead():
    assert reference_of(RECORD["rows"][0]) == "static_influence"
    assert greedy_of(RECORD["rows"][2]) is None


def test_greedy_is_the_one_of_both_units_with_less_lead():
    text = row("code", (-0.04, -0.1, 0.0, 0.3), other=(0.0, -0.1, 0.1, 0.2))
    text["arms"]["static_block_greedy"] = arm(gap=(-0.08, -0.1, -0.05, 0.3))
    assert greedy_of(text)["mean"] == -0.04
    text["arms"]["static_greedy"], text["arms"]["static_block_greedy"] = (
        text["arms"]["static_block_greedy"],
        text["arms"]["static_greedy"],
    )
    assert greedy_of(text)["mean"] == -0.04


def test_an_arm_out_of_reach_may_be_the_best_one():
    ahead, behind = (-0.2, -0.3, -0.1, 0.0), (0.2, 0.1, 0.3, 0.5)
    for text, outcome in (
        (row("code", ahead), Outcome.UNEQUAL_COST),
        (row("code", behind), Outcome.LOSES),
        (row("code", ahead, other=ahead), Outcome.WINS),
    ):
        assert outcome_at_equal_cost(gap_of(text, reference_of(text))) is outcome
    (sentence,) = summary({"rows": [row("code", ahead)]})
    assert "wins" not in sentence


def test_home_is_a_point_of_the_line_of_the_kind_that_was_left_out():
    points = points_of(RECORD)
    assert [(point["kind"], point["home"]) for point in points] == [
        ("prose", False),
        ("code", False),
        ("maths", False),
        ("prose", True),
    ]
    assert points[2]["mean"] is None


def test_the_first_screen_says_what_was_not_measured():
    faster, good, trusted = (sentence for _, sentence in first_screen(RECORD))
    assert faster.startswith("Not measured")
    assert "wins on 1, cannot be told on 1 and loses on 1 of 3 texts (worst: code, +0.050 nats)" in good
    assert (
        trusted == "Only in part: 1 of 4 texts have no verdict; each router is one calibration with one seed."
    )
    assert dict(first_screen({"rows": [row("maths", None)]}))["Is it as good?"].startswith(
        "Not measured: no text"
    )
    budgets = {"rows": [row("code", (0.05, 0.01, 0.09, 0.8), budget=budget) for budget in (0.12, 0.25)]}
    assert "loses on 2 of 2 texts" in dict(first_screen(budgets))["Is it as good?"]
    whole = {"rows": [{**row("code", (0.05, 0.01, 0.09, 0.8)), "windows": 32}], "dirty": True}
    assert (
        "over 32 windows a text; code with uncommitted changes"
        in dict(first_screen(whole))["Can I trust it?"]
    )


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["static_influence", "static_greedy"], "the best of 2 static arms"),
        (["static_greedy", "other"], "the best of 2 arms"),
        (["other"], "other"),
    ],
)
def test_a_router_that_is_compared_with_is_not_called_static(names, told):
    assert titles({"rows": [{"arms": {name: {"title": name} for name in names}}]}) == told
