from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention.words import cost_sentence, words
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.words import Words, facts
from layerroute.lab.runs import Run
from tests.unit.lab.record_factory import record, sites

SEEDS = (42, 43, 44)
RATES = {"rates": sites(0.5, 0.45)}


def runs(arm: str, loss: float, *seeds: int, **settings: Any) -> list[Run]:
    settings = {"executed": 2.8e6, **settings}  # of equal cost
    return [
        Run(record(arm, seed, loss=loss + 0.001 * (seed % 2), **settings), Path(f"{arm}{seed}/record.json"))
        for seed in seeds
    ]


def compare(*groups: list[Run]) -> Comparison:
    return compare_runs([run for group in groups for run in group])


def said(comparison: Comparison) -> Words:
    return words(comparison, None)


def told(comparison: Comparison) -> dict[str, str]:
    return dict(facts(comparison))


def text_of(comparison: Comparison) -> str:
    found = said(comparison).discussion
    return " ".join([*(heading for heading, _ in found), *(text for _, texts in found for text in texts)])


def test_a_win_without_controls_is_not_credited_to_routing() -> None:
    text = text_of(compare(runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.0, *SEEDS, **RATES)))
    assert "Dynamic routing has the lower loss" in text
    assert "No control that routes without looking at the token" in text
    assert "it matters which tokens go there" not in text


def beside_random(loss: float) -> str:
    """What is said of a router that wins, where random routing at its rate has a loss of so many nats."""
    rows = [(seed, 4.0 + 0.002 * (seed % 3)) for seed in SEEDS]
    dynamic = [
        Run(record("dynamic", s, loss=own, executed=2.8e6, **RATES), Path(f"d{s}/r.json")) for s, own in rows
    ]
    others = runs("random", loss, *SEEDS, control="random", **RATES)
    return text_of(compare(runs("baseline", 4.1, *SEEDS), dynamic, others))


def test_a_win_over_random_routing_is_said() -> None:
    assert "here it matters which tokens go there" in beside_random(4.2)


def test_a_win_that_random_routing_shares_is_said() -> None:
    text = beside_random(4.0)
    assert "it is not shown to be better" in text
    assert "it matters which tokens go there" not in text
    assert "random (cannot be told)" in text


@pytest.mark.parametrize(
    ("loss", "seeds", "heading", "end"),
    [
        (4.2, SEEDS, "Static assignment has the lower loss", "did not achieve"),
        (4.1, SEEDS, "Static assignment does as well", "no improvement"),
        (4.0, (42,), "One seed cannot tell", "one seed cannot tell"),
        (4.0, SEEDS, "Dynamic routing has the lower loss", "cannot yet be credited"),
    ],
)
def test_branches(loss: float, seeds: tuple[int, ...], heading: str, end: str) -> None:
    found = compare(runs("baseline", 4.1, *seeds), runs("dynamic", loss, *seeds, **RATES))
    assert said(found).discussion[0][0] == heading
    assert end in said(found).conclusion


def test_collapse_suggests_what_was_not_tried() -> None:
    collapsed = {"rates": sites(0.97, 0.5)}
    found = compare(runs("baseline", 4.1, 42), runs("dynamic", 4.1, 42, **collapsed))
    assert "routing collapsed at layer1.mixer" in text_of(found)
    assert "α = 0.05" in text_of(found)
    strong = runs("dynamic", 4.1, 42, **collapsed)
    strong[0].record["recipe"]["objective"]["balance_weight"] = 0.05
    assert "a stronger balance loss" not in text_of(compare(runs("baseline", 4.1, 42), strong))


def test_collapse_of_an_undecided_router_is_told_apart() -> None:
    runs_ = runs("dynamic", 4.1, 42, rates=sites(0.97, 0.5))
    assert "undecided" not in text_of(compare(runs("baseline", 4.1, 42), runs_))
    runs_[0].record["routing"]["token_entropy"]["layer1.mixer"] = 0.693
    assert "The router is undecided there" in text_of(compare(runs("baseline", 4.1, 42), runs_))


def test_limitations_come_from_the_records() -> None:
    first = compare(runs("baseline", 4.1, 42), runs("dynamic", 4.0, 42, learning_rate=2e-3, **RATES))
    text = " ".join(said(first).limitations)
    for part in ("1 completed seed", "256 tokens", "python-stdlib", "4 layers", "not the same for all"):
        assert part in text
    assert "uncommitted" not in text
    assert "executed FLOPs were not counted" not in text
    second = runs("dynamic", 4.0, *SEEDS, **RATES)
    for run in second:
        run.record.update(dirty=True, flops=run.record["flops"] | {"executed_per_token": None})
    text = " ".join(said(compare(runs("baseline", 4.1, *SEEDS), second)).limitations)
    assert "changes that no commit holds" in text
    assert "executed FLOPs were not counted" in text
    assert "Seeds:" not in text


def test_facts() -> None:
    facts = told(compare(runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.0, *SEEDS, **RATES)))
    assert facts["Seeds"] == "42, 43 and 44"
    assert facts["Arms"] == "baseline (static) and dynamic"
    assert "200 steps" in facts["Training"]
    assert facts["First command"].startswith("layerroute train")
    assert "Example CPU" in facts["Hardware"]


def test_text_that_is_made_as_it_is_needed_is_not_called_0_tokens() -> None:
    made = runs("baseline", 4.1, 42)
    assert "training and" in told(compare(made))["Data"]
    for run in made:
        run.record["data"] |= {"source": "recall: mqar", "train_tokens": 0, "validation_tokens": 0}
    assert told(compare(made))["Data"].startswith("recall: mqar: made again for every batch, ")


def test_a_baseline_of_all_but_nothing_gives_no_absurd_percentage() -> None:
    found = compare(runs("baseline", 0.003, 42), runs("dynamic", 2.5, 42, **RATES))
    rows = {row.cells[0].text: row.cells[2].text for row in found.tables["main"].rows}
    assert rows["Improvement: dynamic"] == "below −1,000%"


def test_cost() -> None:
    found = compare(runs("baseline", 4.1, 42), runs("dynamic", 4.0, 42, **RATES))
    assert cost_sentence(found).startswith("Against baseline, dynamic has 1.83 times the training time")
    assert cost_sentence(compare(runs("baseline", 4.1, 42))) == ""


def with_recall(runs_: list[Run], *, lengths: tuple[int, ...] = (1, 4)) -> list[Run]:
    for run in runs_:
        points = [
            {"multiple": m, "length": 128 * m, "accuracy": 0.9, "loss": 1.0, "answers": 9, "mean_rate": 0.475}
            for m in lengths
        ]
        run.record["recall"] = {
            "task": "mqar",
            "pairs": 16,
            "chance": 0.03,
            "by_length": points,
            "by_distance": [],
        }
    return runs_


def test_what_was_measured_is_not_called_missing() -> None:
    groups = (runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.1, *SEEDS, **RATES))
    before = compare(*groups)
    assert "are not measured here" in " ".join(said(before).limitations)
    assert "associative recall, and contexts beyond" in text_of(before)
    found = compare(*map(with_recall, groups))
    told = " ".join(said(found).limitations)
    assert "recall of made-up sequences (mqar of 16)." in told and "are not measured" not in told
    text = text_of(found)
    assert "associative recall" not in text and "contexts beyond" not in text
    assert found.answers_beside[0] in text and "dynamic holds its rate" in text
    assert (
        found.answers_beside[0] in said(found).takeaways and found.answers_beside[0] in said(found).abstract
    )
    short = compare(*(with_recall(group, lengths=(1,)) for group in groups))
    assert "lengths beyond that of training are not measured" in " ".join(said(short).limitations)
    assert "contexts beyond the trained length" in text_of(short)


def test_a_balance_loss_explains_nothing_where_there_is_none() -> None:
    groups = [runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.1, *SEEDS, **RATES)]
    assert "Three explanations are open" in text_of(compare(*groups))
    for run in groups[1]:
        run.record["recipe"]["objective"]["balance_weight"] = 0.0
    text = text_of(compare(*groups))
    assert "Two explanations are open" in text and "the balance loss keeps" not in text


def test_trials_of_a_study_are_not_denied() -> None:
    groups = [runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.0, *SEEDS, **RATES)]
    assert "show no search" in " ".join(said(compare(*groups)).limitations)
    for run in groups[1]:
        run.record["command"] = "layerroute study recall.yaml"
    assert "trials by which a study chose them" in " ".join(said(compare(*groups)).limitations)


def test_times_of_a_busy_machine_are_not_told() -> None:
    groups = [runs("baseline", 4.1, *SEEDS), runs("dynamic", 4.0, *SEEDS, **RATES)]
    steady = compare(*groups)
    assert "times the training time" in cost_sentence(steady)
    assert steady.tables["efficiency"].rows[1].cells[3].value == pytest.approx(1.83, abs=0.02)
    groups[1][0].record["timing"]["train_seconds"] *= 1.5
    busy = compare(*groups)
    assert "training time" not in cost_sentence(busy) and "parameters" in cost_sentence(busy)
    table = busy.tables["efficiency"]
    assert [row.cells[3].text for row in table.rows] == ["–", "–"]
    assert any("THE MACHINE WAS BUSY" in note and "1.49× apart" in note for note in table.notes)
    # The same on another machine is another machine, and no noise.
    groups[1][0].record["hardware"] |= {"cpu": "Slower CPU"}
    assert not any("BUSY" in note for note in compare(*groups).tables["efficiency"].notes)


@pytest.mark.parametrize(
    ("rates", "word", "said"),
    [
        ((0.26, 0.24), "No, at the rate asked for", "holds the rate of 25% that was asked for"),
        ((0.40, 0.30), "No, but off the rate asked for", "misses the rate of 25% that was asked for"),
    ],
)
def test_a_router_with_a_budget_is_held_to_it_and_not_to_an_even_split(
    rates: tuple[float, float], word: str, said: str
) -> None:
    group = runs("dynamic", 4.0, *SEEDS, rates=sites(*rates))
    for run in group:
        run.record["recipe"]["model"]["routing"] |= {"budget": "quantile", "rate": 0.25}
    found = compare(runs("baseline", 4.1, *SEEDS), group)
    cells = {row.cells[0].text: row.cells[-1].text for row in found.tables["main"].rows}
    assert cells["dynamic"] == word
    (sentence,) = [text for text in words(found, None).takeaways if text.startswith("In dynamic, ")]
    assert said in sentence and "even split" not in sentence


def test_the_abstract_tells_how_the_arm_it_is_about_routed() -> None:
    other = runs("after_softmax", 4.2, *SEEDS, **RATES)  # before "dynamic" in every order by name
    found = compare(runs("baseline", 4.1, *SEEDS), other, runs("dynamic", 4.0, *SEEDS, **RATES))
    routed = [text.split()[1].strip(",") for text in said(found).takeaways if text.startswith("In ")]
    assert routed == ["dynamic", "after_softmax"]
    assert found.subject is not None and found.subject.label == "dynamic"
    assert "In after_softmax" not in said(found).abstract
