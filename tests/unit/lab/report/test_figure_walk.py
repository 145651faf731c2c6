"""Every figure with degenerate data: all texts lie inside the canvas, and none lies on another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from layerroute.lab.report.figures import View
from layerroute.lab.report.style import figure_style, settle
from layerroute.lab.runs import Run, load_runs
from tests.unit.lab.record_factory import record, sites, write_run
from tests.unit.lab.report.test_speed import record as speed_record
from tests.unit.lab.report.test_speed import skipping as speed_row
from tests.unit.lab.report.walk import ATTENTION, SKIPPING, faults, page, view

LONG = "an_arm_whose_name_says_every_setting_that_it_was_ever_given_and_some_more"
POINT = {"multiple": 1, "length": 128, "accuracy": 0.5, "loss": 1.0, "answers": 9, "mean_rate": 0.25}
RECALL = {"task": "mqar", "pairs": 16, "chance": 1 / 32, "by_distance": []}
RECALL |= {"by_length": [POINT | {"multiple": m, "length": 128 * m} for m in (1, 2, 4)]}
CACHE = {"read_per_token": 40e3, "keys_values": 33e3, "state": 7e3, "context_length": 128}


def attention(arm: str, seed: int = 1, **settings: Any) -> dict[str, Any]:
    return record(arm, seed, **{"recall": RECALL, "cache": CACHE, "executed": 2.8e6, **settings})


def skipping(
    arm: str, seed: int = 1, *, rate: float = 0.75, control: str | None = None, **settings: Any
) -> dict[str, Any]:
    content = record(arm, seed, **{"rates": sites(rate, rate, rate, layer=4), "control": control, **settings})
    content["capability"] = "layer_skipping"
    if content["routing"]:
        content["routing"] |= {"paths": ["skip", "run"], "expensive_path": "run", "skipped": 1 - rate}
    content["flops"] |= {"base_per_token": 1e6, "executed_per_token": 1e6 * (0.2 + 0.8 * rate)}
    content["recipe"] |= {
        "model": {"name": "tiny"},
        "start": {"method": "calibrated", "arm": control or "token"},
    }
    return content


MAKE: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    ATTENTION: (attention, {"rates": sites(0.5, 0.3)}, {"rates": sites(0.5, 0.3), "control": "random"}),
    SKIPPING: (skipping, {}, {"control": "random"}),
}


def one_arm(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    yield make("dynamic", **routed)


def constant(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    for seed in (1, 2, 3):
        yield make("dynamic", seed, loss=3.0, **routed)
        yield make("random", seed, loss=3.0, **control)


def two_points(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    yield make("dynamic", loss=0.003, **routed)
    yield make("random", loss=7.0, **control)


def long_names(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    for number in range(3):
        yield make(f"{LONG}_{number}", **routed)
        yield make(f"control_{LONG}_{number}", loss=4.2 + number / 10, **control)


def missing(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    yield make("dynamic", **routed, curves=None, token_routes=None)
    yield make("random", **control, status="failed", flops={}, timing={}, metrics={}, parameters={})
    yield make("other", recipe={}, **control)


def many(make: Any, routed: Any, control: Any) -> Iterator[dict[str, Any]]:
    for number in range(14):
        yield make(f"dynamic_{number}", loss=4 + number / 50, **routed)
        yield make(f"random_{number}", loss=4.2 + number / 50, **control)


SETS = (one_arm, constant, two_points, long_names, missing, many)
SPEED = [
    speed_record("prefill", [speed_row(0.5, 1.6, 0.9)]),
    speed_record(
        "decode", [speed_row(0.25, 1.0, 1.0), speed_row(0.5, 1.0, 1.0, kv="evict", context="a_long_context")]
    ),
]


def cut_to_the_last_step(run: Run) -> None:
    for split in ("train", "validation"):
        part = run.curves[run.curves["split"] == split]
        run.curves.drop(part.index[:-1], inplace=True)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, View]]:
    """By capability and name of the set of runs."""
    found: dict[str, dict[str, View]] = {}
    for capability, made in MAKE.items():
        found[capability] = {}
        for make_runs in SETS:
            folder = tmp_path_factory.mktemp(make_runs.__name__)
            for place, content in enumerate(make_runs(*made)):
                write_run(folder / str(place), content)
            found[capability][make_runs.__name__] = view(load_runs([folder]), capability, SPEED)
        runs = load_runs([folder])[:2]
        for run in runs:
            cut_to_the_last_step(run)
        found[capability]["one_step"] = view(runs, capability, SPEED)
    return found


@pytest.mark.parametrize("name", [f"{c}:{spec.name}" for c in MAKE for spec in page(c).figures])
def test_all_texts_of_every_figure_are_readable(
    name: str, views: dict[str, dict[str, View]], tmp_path: Path
) -> None:
    capability, name = name.split(":")
    spec = next(spec for spec in page(capability).figures if spec.name == name)
    found, times = {}, 0
    for case, shown in views[capability].items():
        with figure_style():
            drawn = spec.draw(shown)
            if isinstance(drawn, str):
                continue
            figure, data, caption = drawn
            settle(figure)
            if wrong := faults(figure):
                found[case] = wrong
                figure.savefig(tmp_path / f"{case}.png", dpi=110)
        times += 1
        assert data.notna().any(axis=None) and caption
    assert times or name == "figure-11", "never drawn"
    assert found == {}
