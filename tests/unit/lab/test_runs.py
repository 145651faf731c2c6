import json
import shutil
from pathlib import Path

import pytest

from layerroute.errors import UserError
from layerroute.lab.runs import Run, load_runs
from layerroute.records import aside_name, is_aside
from tests.unit.lab.record_factory import make_run, record, sites, write_run


def test_runs_are_found_at_any_depth_and_counted_once(tmp_path: Path) -> None:
    first = make_run(tmp_path / "study" / "a", "baseline")
    make_run(tmp_path / "study" / "b" / "c", "dynamic", rates=sites(0.5, 0.5))
    runs = load_runs([tmp_path / "study", first, first / "record.json"])
    assert [run.arm for run in runs] == ["baseline", "dynamic"]


def test_what_lies_within_a_run_is_no_run_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path, "baseline")
    shutil.copytree(run, run / "checkpoints" / "old")
    shutil.copytree(run, tmp_path / "report" / "copy")
    assert len(load_runs([tmp_path])) == 1


def test_committed_records_without_directories(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "baseline")
    (tmp_path / "results").mkdir()
    shutil.copy(run / "record.json", tmp_path / "results" / "baseline-seed42.json")
    (tmp_path / "results" / "notes.json").write_text('{"not": "a record"}')
    (found,) = load_runs([tmp_path / "results"])
    assert found.arm == "baseline"
    assert found.curves.empty
    assert found.token_routes is None


def test_a_wrong_path_gets_the_nearest_name(tmp_path: Path) -> None:
    make_run(tmp_path, "dynamic", rates=sites(0.5, 0.5))
    with pytest.raises(UserError, match=r"dynamc-seed42.*Did you mean 'dynamic-seed42'\?"):
        load_runs([tmp_path / "dynamc-seed42"])


def test_a_directory_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_runs([tmp_path])


def test_a_broken_record_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, "baseline")
    (run / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"record\.json is not a result record"):
        load_runs([tmp_path])


def _run(folder: Path, lines: list[str]) -> Run:
    (folder / "curves.jsonl").write_text("\n".join(lines))
    return Run(record("baseline"), folder / "record.json")


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path: Path) -> None:
    good = [json.dumps({"step": s, "split": "train", "lm_loss": 5.0 - s}) for s in (1, 2)]
    assert list(_run(tmp_path, [*good, '{"step": 3, "spl']).curve("train", "lm_loss")) == [4.0, 3.0]


def test_a_broken_line_before_the_end_is_an_error(tmp_path: Path) -> None:
    lines = ["{oops", json.dumps({"step": 2, "split": "train"})]
    with pytest.raises(UserError, match=r"curves\.jsonl, line 1"):
        _ = _run(tmp_path, lines).curves


def test_a_repeated_step_counts_as_written_last(tmp_path: Path) -> None:
    points = [(20, 3.0), (10, 5.0), (20, 4.0)]
    lines = [json.dumps({"step": s, "split": "validation", "loss": v}) for s, v in points]
    curve = _run(tmp_path, lines).curve("validation", "loss")
    assert list(curve.index) == [10, 20]
    assert list(curve) == [5.0, 4.0]


def test_missing_values_are_missing_and_never_zero(tmp_path: Path) -> None:
    lines = [
        json.dumps({"step": 1, "split": "train", "lm_loss": 5.0}),
        json.dumps({"step": 2, "split": "train", "lm_loss": 4.0, "balance_loss": 1.5}),
    ]
    run = _run(tmp_path, lines)
    assert list(run.curve("train", "balance_loss").index) == [2]
    assert run.curve("train", "nowhere").empty
    assert run.curve("validation", "lm_loss").empty
    assert run.value("flops", "nowhere", "deeper") is None


@pytest.mark.parametrize(
    "change",
    [{"choice": [[0]]}, {"choice": [[0], [2]]}, {"probability": [[0.1], ["x"]]}, {"tokens": ["a"]}],
    ids=["rows", "path", "number", "tokens"],
)
def test_token_routes_must_fit(tmp_path: Path, change: dict[str, object]) -> None:
    sentence = {"tokens": ["a", "b"], "choice": [[0], [1]], "probability": [[0.2], [0.8]]}
    content = {"sites": ["layer1.mixer"], "paths": ["gdn", "softmax"], "sentences": [sentence | change]}
    (tmp_path / "token_routes.json").write_text(json.dumps(content))
    run = Run(record("dynamic", rates=sites(0.5)), tmp_path / "record.json")
    with pytest.raises(UserError, match=r"token_routes\.json does not hold token routes"):
        _ = run.token_routes


def test_runs_that_were_set_aside_are_no_arms(tmp_path: Path) -> None:
    """As docs/reproduction.md has it: train, train --fresh, then compare the folder."""
    now = make_run(tmp_path, "baseline", loss=4.0)
    for number in (1, 2):
        write_run(tmp_path / f"{now.name}.earlier-{number}", record("baseline", loss=4.0 + number))
    every = [tmp_path, *sorted(tmp_path.iterdir())]  # the folder, or runs/*
    for given in ([tmp_path], every[1:], every):
        assert [run.path.parent.name for run in load_runs(given)] == [now.name]
    (named,) = load_runs([tmp_path / f"{now.name}.earlier-1"])
    assert named.value("metrics", "validation_loss") == 5.0, "one that is named is read"
    assert aside_name("x", 1) == "x.earlier-1" and is_aside(Path("runs/x.earlier-12/record.json"))
    shutil.rmtree(now)
    with pytest.raises(UserError, match="holds no run"):
        load_runs([tmp_path])
