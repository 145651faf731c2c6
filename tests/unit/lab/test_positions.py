"""Loss by place in the sequence: means over seeds, and only of places that every seed has."""

from pathlib import Path

import pytest

from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.runs import Run
from layerroute.lab.tables import loss_by_position, positions_table
from tests.unit.lab.record_factory import record


def run(arm: str, seed: int, places: dict[tuple[int, int], float] | None) -> Run:
    content = record(arm, seed)
    if places is not None:
        content["validation"] = {
            "by_position": [
                {"from": a, "to": b, "loss": loss, "tokens": 10} for (a, b), loss in places.items()
            ]
        }
    return Run(content, Path(f"{arm}-{seed}/record.json"))


def test_means_over_seeds_of_places_that_all_have() -> None:
    comparison = compare_runs(
        [
            run("baseline", 1, {(1, 1): 6.0, (2, 2): 5.0, (3, 4): 4.0}),
            run("baseline", 2, {(1, 1): 6.2, (2, 2): 5.4}),
            run("other", 1, {(1, 1): 6.0, (2, 2): 5.0}),
            run("old", 1, None),
        ]
    )
    arm = next(arm for arm in comparison.arms if arm.label == "baseline")
    assert loss_by_position(arm) == pytest.approx({(1, 1): 6.1, (2, 2): 5.2})
    table = comparison.tables["positions"]
    assert [column.label for column in table.columns] == ["Model", "1", "2"]
    assert {row.cells[0].text: row.cells[1].text for row in table.rows} == {
        "baseline": "6.100",
        "other": "6.000",
    }


def test_without_places_there_is_no_table() -> None:
    assert positions_table(compare_runs([run("baseline", 1, None)]).arms) is None
    assert positions_table(compare_runs([run("baseline", 1, {(1, 64): 3.0})]).arms) is None
