"""What is retained of the base's scores, and what is said of one model against another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from layerroute.errors import UserError
from layerroute.lab.retention import Scores, change, retention

GENERATOR = np.random.default_rng(1)
DOCUMENTS = 300
RIGHT = (GENERATOR.random(DOCUMENTS) < 0.6).astype(float)
LOSS = GENERATOR.normal(3.0, 0.5, DOCUMENTS)


def scores(label: str, *, lost: int, worse: float, skipped: float) -> Scores:
    """A model that misses ``lost`` of the base's right answers, and whose losses are higher by ``worse``."""
    right = RIGHT.copy()
    right[np.flatnonzero(right)[:lost]] = 0.0
    values = {("words", "acc"): right.tolist(), ("text", "perplexity"): (LOSS + worse).tolist()}
    executed = dict.fromkeys(values, 1e9 * (1 - skipped))
    return Scores(label=label, skipped=skipped, values=values, executed=executed)


BASE = scores("base", lost=0, worse=0.0, skipped=0.0)


def test_retention_is_a_share_of_the_base_s_score_and_more_is_better() -> None:
    found = change(scores("token", lost=20, worse=0.1, skipped=0.25), BASE, "words", "acc")
    assert found.retained == pytest.approx((RIGHT.sum() - 20) / RIGHT.sum())
    assert found.low is not None and found.high is not None
    assert found.low < found.retained < found.high < 1.0
    text = change(scores("token", lost=20, worse=0.1, skipped=0.25), BASE, "text", "perplexity")
    assert text.retained == pytest.approx(np.exp(-0.1))
    assert text.difference == pytest.approx(0.1)
    # Every document is worse by the same amount: pairing leaves no width at all.
    assert text.difference_low == pytest.approx(0.1) and text.difference_high == pytest.approx(0.1)


def test_the_first_model_is_held_against_the_others_on_the_same_documents() -> None:
    token = scores("token", lost=5, worse=0.1, skipped=0.25)
    random = scores("random", lost=60, worse=0.6, skipped=0.25)
    found = retention(BASE, [token, random])
    outcome = {(c.against, c.metric): c.better for c in found.against_others}
    assert outcome == {("random", "acc"): "better", ("random", "perplexity"): "better"}
    assert {(c.model, c.against) for c in found.kept} == {("token", "base"), ("random", "base")}
    rows = {row.cells[0].text: row.cells for row in found.table.rows}
    assert rows["base"][3].text == "–" and rows["token"][1].text == "25.0%"
    assert rows["random"][3].value == pytest.approx(1 - 60 / RIGHT.sum())
    assert len(found.differences.rows) == 2
    assert {c.better for c in found.kept} == {"no verdict: unequal FLOPs"}, "the base runs everything"
    turned = {(c.against, c.better) for c in retention(BASE, [random, token]).against_others}
    assert turned == {("token", "worse")}


@pytest.mark.parametrize(("other", "told"), [(0.245, True), (0.2449, False), (0.256, False), (None, False)])
def test_models_that_execute_other_flops_on_the_same_documents_get_no_verdict(
    other: float | None, told: bool
) -> None:
    token = scores("token", lost=5, worse=0.1, skipped=0.25)
    random = replace(scores("random", lost=60, worse=0.6, skipped=other or 0.25))
    if other is None:  # scores of an earlier version
        random = replace(random, executed={})
    found = retention(BASE, [token, random])
    assert {c.better.partition(":")[0] for c in found.against_others} == {"better" if told else "no verdict"}
    said = f"{found.to_dict()} {found.differences.to_markdown()}"
    assert ("'outcome': 'better'" in said) is told and ("| better |" in said) is told


def test_what_differs_by_chance_alone_is_not_told_apart() -> None:
    flips = np.random.default_rng(2).permutation(DOCUMENTS)[:40]
    other = RIGHT.copy()
    other[flips[:20]], other[flips[20:]] = 0.0, 1.0
    values = {("words", "acc"): other.tolist()}
    base = Scores(label="base", skipped=0.0, values={("words", "acc"): RIGHT.tolist()})
    found = change(Scores(label="x", skipped=0.2, values=values), base, "words", "acc")
    assert replace(found, executed=0.8, executed_reference=0.8).better == "cannot be told"


def test_one_document_has_no_interval() -> None:
    base, right, wrong = (
        Scores(
            label=label,
            skipped=0.2,
            values={("words", "acc"): [value], ("text", "perplexity"): [3.0 - value]},
            executed={("words", "acc"): 1.0, ("text", "perplexity"): 1.0},
        )
        for label, value in (("base", 1.0), ("right", 1.0), ("wrong", 0.0))
    )
    found = retention(base, [right, wrong])
    for one in (*found.kept, *found.against_others):
        assert (one.low, one.high, one.difference_low, one.difference_high) == (None,) * 4
    assert [one.better for one in found.against_others] == ["cannot be told"] * 2
    rows = {row.cells[0].text: [cell.text for cell in row.cells] for row in found.table.rows}
    assert rows["wrong"][2:4] == ["0.0%", "0.0%"]
    assert [row.cells[4].text for row in found.differences.rows] == ["–", "–"]


def test_a_base_that_scores_nothing_has_nothing_to_retain() -> None:
    nothing = {("answers", "exact_match"): [0.0] * 5}
    found = change(
        Scores(label="x", skipped=0.2, values=nothing), Scores(label="base", skipped=0.0, values=nothing),
        "answers", "exact_match",
    )  # fmt: skip
    assert found.retained is None and found.low is None


def test_other_documents_are_refused() -> None:
    short = Scores(label="token", skipped=0.2, values={k: list(v)[:10] for k, v in BASE.values.items()})
    with pytest.raises(UserError, match="10 documents of words and base 300"):
        retention(BASE, [short])
    fewer = Scores(label="token", skipped=0.2, values={("words", "acc"): RIGHT.tolist()})
    with pytest.raises(UserError, match="not scored on the same tasks"):
        retention(BASE, [fewer])
