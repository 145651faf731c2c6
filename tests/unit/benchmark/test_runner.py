"""No timing on a red gate; what was measured goes into a record and a table."""

import argparse
import io
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from layerroute.benchmark.case import Check, Comparison, Prepared, RedGate
from layerroute.benchmark.cases import CASES, load_case
from layerroute.benchmark.output import print_table, save
from layerroute.benchmark.runner import run_comparisons, same_rows
from layerroute.errors import UserError

GREEN = Check(what="outputs", deviation=1e-7, tolerance=1e-5)
RED = Check(what="gradients of beta", deviation=0.5, tolerance=1e-5)


def comparison(checks: list[Check], events: list[str], title: str = "one") -> Comparison:
    def gate() -> list[Check]:
        events.append("gate")
        return checks

    arms = {name: (lambda name=name: events.append(name)) for name in ("old", "new")}
    return Comparison(
        title=title,
        labels={"size": 3},
        baseline="old",
        tokens=10,
        device=torch.device("cpu"),
        prepare=lambda: Prepared(gate=gate, arms=arms, count=lambda: {"new": {"parameters": 7}}),
    )


def run(*comparisons: Comparison) -> dict:
    return run_comparisons("demo", comparisons, repeats=3, command="layerroute bench demo")


def test_a_red_gate_times_nothing_and_names_the_worst() -> None:
    events: list[str] = []
    small = Check(what="outputs", deviation=2e-5, tolerance=1e-5)
    with pytest.raises(RedGate, match=r"^one: gradients of beta differ by 0\.5 .* nothing was timed"):
        run(comparison([GREEN, small, RED], events))
    assert events == ["gate"]


def test_the_gate_comes_before_every_timing() -> None:
    events: list[str] = []
    with pytest.raises(RedGate, match=r"^two:"):
        run(comparison([GREEN], events), comparison([RED], events, "two"))
    assert events[0] == "gate" and events[-1] == "gate" and "new" in events[1:-1]


def test_a_comparison_without_a_check_is_refused() -> None:
    events: list[str] = []
    with pytest.raises(ValueError, match="without a check"):
        run(comparison([], events))
    assert events == ["gate"]


def test_the_record_holds_what_was_measured_and_where(tmp_path: Path) -> None:
    record = run(comparison([GREEN], []))
    assert record["schema"] == 1 and record["kind"] == "benchmark" and record["case"] == "demo"
    assert record["command"] == "layerroute bench demo"
    assert {
        "versions",
        "revision",
        "dirty",
        "hardware",
        "load",
        "threads",
        "device",
        "started",
    } <= record.keys()
    (row,) = record["rows"]
    assert row["size"] == 3 and row["tokens"] == 10 and row["baseline"] == "old"
    assert row["gate"] == [{"what": "outputs", "deviation": 1e-7, "tolerance": 1e-5}]
    new = row["arms"]["new"]
    assert new["parameters"] == 7
    assert new["tokens_per_second"] == pytest.approx(10 / new["seconds"]["median"])
    assert new["seconds"]["minimum"] <= new["seconds"]["median"] <= new["seconds"]["maximum"]
    assert row["arms"]["old"]["speedup"]["median"] == 1.0

    path = tmp_path / "made" / "demo.json"
    save(path, record)
    assert json.loads(path.read_text()) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["demo.json"]


def test_a_record_that_is_cut_off_holds_its_rows_and_is_gone_on_with() -> None:
    held: list[dict] = []
    rows = [comparison([GREEN], []), comparison([RED], [], "two")]
    command = "layerroute bench demo"
    with pytest.raises(RedGate):
        run_comparisons("demo", rows, repeats=3, command=command, on_record=lambda one: held.append(one))
    (record,) = held
    assert [row["title"] for row in record["rows"]] == ["one"] and record["finished"] is None
    source = {key: record[key] for key in ("versions", "revision", "hardware")} | {"dirty": False}
    record["dirty"] = False
    kept = same_rows(record, command, source)
    assert set(kept) == {"one"}
    for other in ({"revision": "another"}, {"hardware": {}}, {"dirty": True}):
        assert same_rows(record, command, source | other) == {}
    assert same_rows(record | {"dirty": True}, command, source | {"dirty": True}) == {}
    assert same_rows(record, f"{command} --repeats 9", source) == {}
    assert same_rows(record | {"threads": record["threads"] + 1}, command, source) == {}
    events: list[str] = []
    whole = run_comparisons(
        "demo", [comparison([GREEN], events)], repeats=3, command=command, kept={"one": record["rows"][0]}
    )
    assert events == [] and whole["rows"] == record["rows"] and whole["finished"] is not None


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("prefill", ["--shape", "tiny", "--skip"]),
        ("calibrate", ["--phases", "prefill", "--skip"]),
        ("calibrate", ["--phases", "prefill", "--model", "hybrid", "--skip"]),
        ("attention", ["--passes", "forward", "--rates"]),
        ("hybrid", ["--rates"]),
    ],
)
def test_no_two_rows_have_one_title(case: str, options: list[str]) -> None:
    """Rows are gone on with by title."""
    found, parser = load_case(case), argparse.ArgumentParser()
    found.add_arguments(parser)
    rows = found.comparisons(parser.parse_args([*options, "0.25", "0.2501", "0.2504"]))
    assert len({row.title for row in rows}) == len(rows) and any("25% " in row.title for row in rows)


def test_an_engine_is_not_timed_by_the_seconds_of_another_process() -> None:
    found, parser = load_case("engine"), argparse.ArgumentParser()
    found.add_arguments(parser)
    options = parser.parse_args(["--export", "nowhere", "--busy", "mark"])
    options.clock = "cpu"
    with pytest.raises(UserError, match="--clock cpu"):
        found.comparisons(options)
    options = parser.parse_args(["--export", "nowhere", "--busy", "mark", "--batches", "--prefill"])
    with pytest.raises(UserError, match="nothing to measure"):
        found.comparisons(options)


def test_the_share_of_the_peak_is_of_a_product_of_this_device() -> None:
    slow = lambda: time.sleep(0.03)  # noqa: E731
    arms = {"old": slow, "new": slow}
    needs = Prepared(gate=lambda: [GREEN], arms=arms, needed={"new": 3e6})
    (row,) = run(replace(comparison([GREEN], []), prepare=lambda: needs))["rows"]
    new = row["arms"]["new"]
    assert new["share_of_peak"] == pytest.approx(
        3e6 / new["seconds"]["median"] / row["peak_flops_per_second"]
    )
    assert row["peak_flops_per_second"] > 1e8 and "share_of_peak" not in row["arms"]["old"]


def test_cpu_seconds_do_not_count_waiting() -> None:
    one = comparison([GREEN], [])
    waiting = {"old": lambda: time.sleep(0.03), "new": lambda: time.sleep(0.03)}
    one = replace(one, prepare=lambda: Prepared(gate=lambda: [GREEN], arms=waiting))
    seconds = {}
    for clock in ("wall", "cpu"):
        record = run_comparisons("demo", [one], repeats=3, clock=clock, command="")
        assert record["clock"] == clock
        seconds[clock] = record["rows"][0]["arms"]["old"]["seconds"]["median"]
    assert seconds["cpu"] < 0.01 < 0.03 <= seconds["wall"]


def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    save(path, {"good": 1})
    with pytest.raises(ValueError, match="JSON"):
        save(path, {"bad": math.nan})
    assert json.loads(path.read_text()) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_red_gate_with_an_exact_check_names_it() -> None:
    loose = Check(what="loose", deviation=0.5, tolerance=0.1)
    exact = Check(what="exact", deviation=1e-9, tolerance=0.0)
    with pytest.raises(RedGate, match="exact differ by 1e-09"):
        run(comparison([loose, exact], []))


def test_the_table_shows_every_arm() -> None:
    text = io.StringIO()
    print_table(run(comparison([GREEN], [])), Console(file=text, width=80))
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["one"] in lines
    assert any(line[:1] == ["old"] and line[-1] == "1" for line in lines)
    assert any(line[:1] == ["new"] and line[-2].endswith("x") for line in lines)
    assert "largest deviation 1e-07" in text.getvalue()


def test_deviation_is_relative_and_nothing_strange_is_equal() -> None:
    def deviation(actual: list[float], expected: list[float]) -> float:
        return Check.compare("x", torch.tensor(actual), torch.tensor(expected), 0.1).deviation

    assert deviation([1.0, 10.5], [1.0, 10.0]) == pytest.approx(0.05)
    assert deviation([0.0], [0.0]) == 0.0
    assert deviation([1e-3], [0.0]) > 1e6
    for strange in ([math.nan], [math.inf], [1.0, 1.0]):
        assert deviation(strange, [1.0]) == math.inf
    assert not Check.compare("x", torch.tensor([1.0]), torch.tensor([math.nan]), 0.1).green


def test_cases_are_known_by_name_and_imported_late() -> None:
    with pytest.raises(UserError, match=r"'gated_delta'\. Did you mean 'gated-delta'\?"):
        load_case("gated_delta")
    for name in CASES:
        case = load_case(name)
        assert case.description and callable(case.add_arguments) and callable(case.comparisons)
    code = "import sys, layerroute.benchmark.cases, layerroute.cli.bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
