"""Speed-up against the share left out, from records: the ideal line, titles that tell panels apart, honest notes."""

import json
from pathlib import Path
from typing import Any

import pytest

from layerroute.cli.main import main
from layerroute.errors import UserError
from layerroute.lab.report.speed import _panels, read_speed_records, speed_at, speed_data, speed_figures


def spread(median: float) -> dict[str, float]:
    return {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "minimum": 0.0, "maximum": 9.0}


def arm(speedup: float, share: float | None = None, **facts: float) -> dict[str, Any]:
    shares = {} if share is None else {"share_of_limit": spread(share)}
    return {"speedup": spread(speedup), **shares, **facts}


def record(case: str, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "benchmark",
        "case": case,
        "clock": "wall",
        "repeats": 7,
        "threads": 2,
        "device": "cpu",
        "hardware": {"cpu": "some CPU", "accelerator": None},
        "rows": rows,
        **changes,
    }


def skipping(skip: float, sparse: float, share: float, **labels: Any) -> dict[str, Any]:
    arms = {"dense": arm(1.0), "masked": arm(0.9), "sparse": arm(sparse, share), "limit": arm(2.0, 1.0)}
    limit = {"arm": "limit", "factor": 1.0, "whole": "dense"}
    return {
        "batch": 4,
        "time": 512,
        "skip": skip,
        "baseline": "dense",
        "limit": limit,
        "arms": arms,
        **labels,
    }


PREFILL = record("prefill", [skipping(0.5, 1.6, 0.8), skipping(0.25, 1.2, 0.96)])


def test_the_ideal_line_is_the_limit_at_exactly_each_share() -> None:
    (panel,) = _panels(PREFILL)
    assert [row["skip"] for row in panel.rows] == [0.25, 0.5]
    assert panel.ideal == pytest.approx({0.0: 1.0, 25.0: 1.25, 50.0: 2.0})


def test_training_is_held_against_masked_and_its_line_begins_at_dense() -> None:
    row = skipping(0.5, 1.4, 0.7, baseline="masked")
    row["arms"]["dense"] = arm(1.1)
    (panel,) = _panels(record("train-skipping", [row]))
    assert panel.ideal == pytest.approx({0.0: 1.1, 50.0: 2.0})


def test_the_operator_cannot_beat_one_over_the_share() -> None:
    rows = [
        {"batch": 1, "time": 64, "rate": rate, "pass": "forward", "baseline": "full causal"}
        | {"arms": {"full causal": arm(1.0), "routed": arm(0.8 / rate)}}
        for rate in (0.25, 0.125)
    ]
    (panel,) = _panels(record("attention", rows))
    line = {round(share, 6): speedup for share, speedup in panel.ideal.items()}
    assert line[12.5] == pytest.approx(8.0) and line[100.0] == pytest.approx(1.0)
    assert all(speedup == pytest.approx(100 / share) for share, speedup in line.items())


def test_the_hybrid_model_is_held_to_its_executed_flops() -> None:
    flops = "executed_flops_per_token"
    row = {"batch": 1, "time": 64, "rate": 0.25, "context": "own_context", "baseline": "masked"}
    row["arms"] = {"masked": arm(1.0, **{flops: 30.0}), "sparse": arm(1.3, **{flops: 20.0})}
    (panel,) = _panels(record("hybrid", [row]))
    assert panel.ideal == pytest.approx({25.0: 1.5}) and "own_context" in panel.title


def test_panels_are_told_apart_and_never_mix_records() -> None:
    rows = [skipping(0.5, 1.5, 0.9), skipping(0.5, 1.4, 0.9, kv="evict"), skipping(0.5, 1.3, 0.9, time=64)]
    titles = [panel.title for panel in _panels(record("decode", rows))]
    assert titles == ["decode\n4 x 512 tokens", "decode\n4 x 512 tokens, evict", "decode\n4 x 64 tokens"]


def test_the_command_draws_committed_records_of_several_cases(tmp_path: Path) -> None:
    paths = []
    for name, one in {"a": PREFILL, "b": record("decode", PREFILL["rows"], clock="cpu", threads=1)}.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(one))
    figure, again = tmp_path / "made" / "speed.svg", tmp_path / "again.svg"
    assert main(["bench", "figure", *map(str, paths), "--out", str(figure)]) == 0
    assert main(["bench", "figure", *map(str, paths), "--out", str(again)]) == 0
    assert figure.read_bytes() == again.read_bytes()
    drawn = figure.read_text()
    for words in (
        "decode",
        "times as fast as dense",
        "some CPU, 1 thread, CPU seconds",
        "2 threads, wall time",
    ):
        assert words in drawn  # matplotlib keeps texts as comments beside their outlines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("not json", "is not JSON"),
        ('{"kind": "study"}', "is not a record"),
        (json.dumps(record("peers", [])), "figures are for prefill"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    assert main(["bench", "figure", str(path), "--out", str(tmp_path / "x.svg")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "gone",
    [
        ("case",), ("clock",), ("hardware",), ("hardware", "cpu"), ("rows", 0, "batch"), ("rows", 0, "baseline"),
        ("rows", 0, "arms"), ("rows", 0, "arms", "sparse", "share_of_limit"),
        ("rows", 1, "arms", "sparse", "speedup", "q3"),
    ],
)  # fmt: skip
def test_a_record_that_lacks_a_part_is_told_in_a_line(
    tmp_path: Path, gone: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path, content = tmp_path / "record.json", json.loads(json.dumps(PREFILL))
    part = content
    for key in gone[:-1]:
        part = part[key]
    del part[gone[-1]]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"record.json is not a whole record .* lacks '{gone[-1]}'"):
        read_speed_records([path])
    assert main(["bench", "figure", str(path), "--out", str(tmp_path / "x.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_form_of_the_file_is_known() -> None:
    with pytest.raises(UserError, match=r"\.png, \.svg or \.pdf"):
        speed_figures([PREFILL], Path("speed.jpg"))


def test_two_machines_have_a_panel_each_and_both_are_told() -> None:
    other = record("prefill", [skipping(0.5, 0.8, 0.8), skipping(0.25, 0.6, 0.96)], threads=16)
    for records in ([PREFILL, other], [other, PREFILL], [PREFILL, PREFILL]):
        told = [words for words, *_ in speed_at(records, 0.75)]
        assert len(set(told)) == 2
        data = speed_data(records)
        assert data[data["arm"] == "sparse"].groupby("panel").size().tolist() == [2, 2]
    assert [words[:5] for words, *_ in speed_at([other, PREFILL], 0.75)] == ["0.60\u00d7", "1.20\u00d7"]


def test_records_that_are_not_drawn_are_refused_in_a_line(tmp_path: Path, capsys: Any) -> None:
    engine = record("engine", [{"skip": 0.25, "limit": {}, "batch": 1, "arms": {}}])
    for number, content in enumerate((engine, {"kind": "benchmark", "case": "prefill"})):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        words = ["bench", "figure", str(tmp_path / f"{number}.json"), "--out", str(tmp_path / "x.png")]
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
