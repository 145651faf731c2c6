import json
from pathlib import Path
from typing import Any

import pytest

from layerroute.capabilities.attention.tables import bigram_sentence
from layerroute.errors import UserError
from layerroute.lab.compare import Comparison
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.runs import Run
from layerroute.outcomes import Outcome
from tests.unit.lab.record_factory import record, sites

SEEDS = (42, 43, 44)
NOISE = {42: 0.0, 43: 0.02, 44: -0.01}


def runs(arm: str, *seeds: int, loss: float = 4.1, jitter: float = 0.001, **settings: Any) -> list[Run]:
    """Runs that execute as many FLOPs as those of any other arm, where ``settings`` do not say otherwise."""
    settings = {"executed": 2.8e6, **settings}
    return [
        Run(
            record(arm, seed, loss=loss + NOISE[seed] + jitter * (index % 2), **settings),
            Path(f"{arm}-seed{seed}") / "record.json",
        )
        for index, seed in enumerate(seeds or (42,))
    ]


def compare(dynamic_loss: float, *seeds: int, jitter: float = 0.001, **settings: Any) -> Comparison:
    return compare_runs(
        [
            *runs("baseline", *seeds, loss=4.1, jitter=0.0),
            *runs("dynamic", *seeds, loss=dynamic_loss, jitter=jitter, rates=sites(0.5, 0.4), **settings),
        ]
    )


def test_wins_loses_and_noise() -> None:
    assert compare(4.05, *SEEDS).outcome is Outcome.WINS
    assert compare(4.15, *SEEDS).outcome is Outcome.LOSES
    noisy = compare(4.09, *SEEDS, jitter=0.05)
    assert noisy.outcome is Outcome.NO_DIFFERENCE
    assert "would probably have gone unseen" in noisy.verdict


@pytest.mark.parametrize("loss", [3.0, 4.1, 5.0])
def test_one_seed_never_decides(loss: float) -> None:
    found = compare(loss, 42)
    assert found.outcome is Outcome.ONE_SEED
    assert "nobody can tell" in found.answer
    for word in ("wins", "lower validation loss than", "improves", "significant"):
        assert word not in found.verdict


def test_two_seeds_say_that_they_are_two() -> None:
    assert "Two seeds leave one degree of freedom" in compare(4.05, 42, 43, jitter=0.0001).answer


def test_no_common_seed() -> None:
    found = compare_runs([*runs("baseline", 42), *runs("dynamic", 43, rates=sites(0.5))])
    assert found.outcome is Outcome.UNPAIRED


def test_unequal_arms_and_missing_controls_are_in_the_verdict() -> None:
    found = compare(4.05, *SEEDS)
    assert "parameters" in found.verdict
    assert "cannot yet be credited to routing" in found.verdict
    assert "random at the same rate" in found.verdict


def test_failed_runs_are_shown_and_not_averaged() -> None:
    found = compare_runs(
        [
            *runs("baseline", *SEEDS),
            *runs("dynamic", 42, 43, rates=sites(0.5)),
            *runs("dynamic", 44, loss=99.0, rates=sites(0.5), status="failed"),
        ]
    )
    assert found.subject is not None
    assert found.subject.seeds == (42, 43)
    assert "dynamic seed 44 (failed)" in found.verdict
    for name in ("main", "efficiency"):
        row = found.tables[name].rows[-1]
        assert row.kind == "unfinished"
        assert row.cells[-1].text == "FAILED"
    assert any("non-finite loss" in note for note in found.tables["main"].notes)


def test_an_arm_without_a_completed_run() -> None:
    found = compare_runs([*runs("baseline"), *runs("dynamic", rates=sites(0.5), status="interrupted")])
    assert found.outcome is Outcome.UNFINISHED
    assert "no run of dynamic completed" in found.answer


def test_nothing_completed() -> None:
    found = compare_runs(runs("baseline", status="failed"))
    assert found.outcome is None
    assert "No run completed" in found.answer


def test_different_data_is_refused_unless_allowed() -> None:
    mixed = [*runs("baseline"), *runs("dynamic", rates=sites(0.5), fingerprint="0f0f0f")]
    with pytest.raises(UserError, match=r"different data.*--allow-different-data"):
        compare_runs(mixed)
    found = compare_runs(mixed, allow_different_data=True)
    assert found.outcome is Outcome.OTHER_DATA
    assert "NOT comparable" in found.tables["main"].notes[0]
    assert found.tables["fairness"].columns[-1].label == "Data"
    assert found.tables["fairness"].rows[1].cells[-1].text == "0f0f0f"


def test_different_tokenizers_are_different_data() -> None:
    one, two = runs("baseline"), runs("dynamic", rates=sites(0.5))
    two[0].record["data"]["tokenizer"] = "gpt2"
    with pytest.raises(UserError, match="tokenizer gpt2"):
        compare_runs([*one, *two])


def test_baseline_by_name_by_content_and_wrong() -> None:
    static = runs("hybrid", pattern=["gdn", "softmax"])
    routed = runs("routed", rates=sites(0.5))
    found = compare_runs([*routed, *static])
    assert found.baseline is not None
    assert found.subject is not None
    assert (found.baseline.label, found.subject.label) == ("hybrid", "routed")
    other = compare_runs([*routed, *static], baseline="routed")
    assert other.baseline is not None
    assert other.baseline.label == "routed"
    with pytest.raises(UserError, match=r"Did you mean 'hybrid'\?"):
        compare_runs([*routed, *static], baseline="hybird")


def test_capabilities_are_not_mixed() -> None:
    with pytest.raises(UserError, match="answer different questions"):
        compare_runs([*runs("baseline"), *runs("skip", capability="layer_skipping")])


def test_no_runs() -> None:
    with pytest.raises(UserError, match="no run to compare"):
        compare_runs([])


def test_secondary_comparisons_are_corrected() -> None:
    everything = [*runs("baseline", *SEEDS), *runs("dynamic", *SEEDS, loss=4.05, rates=sites(0.5))]
    for index in range(6):
        everything += runs(f"variant{index}", *SEEDS, loss=4.06, jitter=0.012, rates=sites(0.5))
    found = compare_runs(everything)
    assert found.primary is not None
    assert (
        found.primary.difference is not None and found.primary.p_adjusted == found.primary.difference.p_value
    )
    variant = next(p for p in found.pairs if p.subject.label == "variant0")
    assert variant.p_adjusted is not None
    assert variant.difference is not None and variant.difference.p_value is not None
    assert variant.p_adjusted > variant.difference.p_value
    assert variant.difference.p_value < 0.05
    assert variant.outcome is Outcome.NOT_CORRECTED


def test_bigram_stands_beside_the_losses() -> None:
    found = compare(4.05, 42)
    (row,) = [r for r in found.tables["main"].rows if r.kind == "reference"]
    assert row.cells[2].text == "4.987"
    assert "beats a bigram model" in bigram_sentence(found.arms)
    assert "did not beat" in bigram_sentence(compare(5.5, 42).arms)


def test_improvement_is_relative_with_plus_for_better() -> None:
    found = compare(4.1 * 0.99, 42)
    (row,) = [r for r in found.tables["main"].rows if r.kind == "improvement"]
    assert [cell.text for cell in row.cells[2:5]] == ["+1.0%", "+4.0%", "+1.3%"]


def test_json_holds_numbers() -> None:
    content = json.loads(json.dumps(compare(4.05, *SEEDS).to_dict()))
    row = content["tables"]["main"]["rows"][0]
    assert row["Val loss ↓"] == pytest.approx(4.1 + 0.01 / 3)
    assert content["outcome"] == "wins"
    assert "all-GDN" in content["controls_missing"]


@pytest.mark.parametrize(
    ("trained", "asked", "told"),
    [
        (
            0.51,
            None,
            "softmax takes 82.0% of the validation tokens and took 51.0% at the end of training; routing.bu",
        ),
        (0.51, 0.5, "at the end of training, with 50.0% asked for"),
        (0.51, 0.82, None),
        (0.81, None, None),
        (None, None, None),
    ],
)
def test_the_verdict_warns_of_a_router_that_serves_another_rate_than_it_trained_at(
    trained, asked, told
) -> None:
    dynamic = runs("dynamic", *SEEDS, rates=sites(0.80, 0.84))
    for run in dynamic:
        run.record["routing"] |= {"trained_rate": trained, "asked_rate": asked}
    found = compare_runs([*runs("baseline", *SEEDS), *dynamic])
    assert ("dynamic serves another rate" in found.verdict) == (told is not None)
    assert told is None or told in found.verdict


def test_not_causal_is_said_everywhere() -> None:
    dynamic = runs("dynamic", rates=sites(0.5))
    dynamic[0].record["routing"]["causal"] = False
    found = compare_runs([*runs("baseline"), *dynamic])
    assert "not causal" in found.verdict
    assert any("NOT CAUSAL" in note for note in found.tables["routing"].notes)
    assert [row.cells[12].text for row in found.tables["fairness"].rows] == ["yes", "NO"]


def test_arms_without_pair() -> None:
    found = compare_runs([*runs("baseline"), *runs("other", pattern=["gdn", "softmax"])])
    assert found.outcome is None
    assert "no pair of a routed arm and a baseline" in found.answer
    assert [p.subject.label for p in found.pairs] == ["other"]
