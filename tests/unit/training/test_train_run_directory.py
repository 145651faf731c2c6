import json
from pathlib import Path
from typing import Any

import pytest

from layerroute.errors import UserError
from layerroute.integrity import MANIFEST, seal
from layerroute.records import RECORD_NAME
from layerroute.training import run_directory
from layerroute.training.checkpoint import (
    STAGING,
    STATE_NAME,
    check_resumable,
    checkpoints,
    clear_leftovers,
    newest_checkpoint,
    publish,
    step_of,
    verify_checkpoint,
)
from layerroute.training.run_directory import (
    RunDirectory,
    find_start,
    first_difference,
    recipe_fingerprint,
    set_run_aside,
)

RECIPE: dict[str, Any] = {
    "name": "a",
    "seed": 1,
    "data": {"cache_dir": "/x", "source": "files"},
    "train": {"max_steps": 5},
}


def make_checkpoint(folder: Path, step: int, fingerprint: str = recipe_fingerprint(RECIPE)) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in (
        "config.json",
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
        "model.safetensors",
        "rng_state.pth",
    ):
        (path / name).touch()
    (path / STATE_NAME).write_text(json.dumps({"fingerprint": fingerprint, "step": step}))
    seal(path)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A folder with an interrupted run of RECIPE."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.record.write_text("{}")
    record = {"run": "a-seed1", "recipe": RECIPE, "status": "interrupted"}
    monkeypatch.setattr(run_directory, "read_record", lambda path: record)
    return directory


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make_checkpoint(tmp_path, step)
    (make_checkpoint(tmp_path, 300) / MANIFEST).unlink()
    (tmp_path / ".saving" / "checkpoint-400").mkdir(parents=True)
    (tmp_path / "checkpoint-x").mkdir()
    assert [step_of(path) for path in checkpoints(tmp_path)] == [9, 20, 100]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert newest_checkpoint(tmp_path / "none") is None


def test_a_new_run_starts_in_a_new_or_empty_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "new", tmp_path):
        for resume in ("auto", "never"):
            assert find_start(RunDirectory(path), RECIPE, resume).kind == "new"
    assert not (tmp_path / "new").exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds no run but other files \(thesis.tex\)"):
        find_start(RunDirectory(tmp_path), RECIPE, "auto")
    with pytest.raises(UserError, match="is a file"):
        find_start(RunDirectory(tmp_path / "thesis.tex"), RECIPE, "auto")


def test_another_run_is_told_with_what_differs(run: RunDirectory) -> None:
    other = {**RECIPE, "train": {"max_steps": 6}}
    with pytest.raises(UserError, match=r"another run \(a-seed1\): train.max_steps is 5 there and 6 here"):
        find_start(run, other, "auto")
    with pytest.raises(UserError, match="another run"):
        find_start(run, {**RECIPE, "seed": 2}, "auto")


def test_where_the_cache_lies_is_no_difference(run: RunDirectory) -> None:
    moved = {**RECIPE, "data": {**RECIPE["data"], "cache_dir": "/y"}}
    assert find_start(run, moved, "auto").kind == "new"
    assert recipe_fingerprint(moved) == recipe_fingerprint(RECIPE)
    assert recipe_fingerprint({**RECIPE, "seed": 2}) != recipe_fingerprint(RECIPE)


def test_a_run_goes_on_from_its_newest_checkpoint(run: RunDirectory) -> None:
    make_checkpoint(run.checkpoints, 3)
    newest = make_checkpoint(run.checkpoints, 5)
    start = find_start(run, RECIPE, "auto")
    assert (start.kind, start.checkpoint) == ("resume", newest)
    assert (
        find_start(run, RECIPE, str(run.checkpoints / "checkpoint-3")).checkpoint
        == run.checkpoints / "checkpoint-3"
    )
    with pytest.raises(UserError, match="not empty"):
        find_start(run, RECIPE, "never")


def test_damaged_checkpoints_are_passed_over_and_told(run: RunDirectory) -> None:
    intact = make_checkpoint(run.checkpoints, 3)
    for step in (5, 9):
        with (make_checkpoint(run.checkpoints, step) / "optimizer.pt").open("ab") as file:
            file.write(b"x")
    start = find_start(run, RECIPE, "auto")
    assert (start.kind, start.checkpoint) == ("resume", intact)
    assert start.note == (
        "checkpoint-9 is damaged (optimizer.pt has 1 bytes instead of 0); checkpoint-5 is damaged (optimizer.pt has "
        "1 bytes instead of 0); going on from checkpoint-3"
    )
    (intact / MANIFEST).write_text("{}")
    start = find_start(run, RECIPE, "auto")
    assert (start.kind, start.checkpoint) == ("new", None)
    assert start.note.endswith("starting from the beginning, because there is no other")


def test_files_that_nobody_listed_are_damage(run: RunDirectory) -> None:
    newest = make_checkpoint(run.checkpoints, 3)
    (newest / "pytorch_model.bin").write_bytes(b"a pickle")
    assert find_start(run, RECIPE, "auto").damaged == (
        (newest, f"it holds pytorch_model.bin, which {MANIFEST} does not list"),
    )


def test_shards_outside_of_the_folder_are_refused(run: RunDirectory) -> None:
    newest = make_checkpoint(run.checkpoints, 3)
    index = newest / "model.safetensors.index.json"
    for name in ("../../model.safetensors", "/etc/passwd", 5):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        seal(newest)
        ((_, reason),) = find_start(run, RECIPE, "auto").damaged
        assert "index" in reason


def test_retention_keeps_the_newest_of_this_run_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (2, 4, 6, 20):
        make_checkpoint(folder, step)
    (folder / ".removed-checkpoint-1").mkdir()
    (folder / STAGING / "checkpoint-7").mkdir(parents=True)
    clear_leftovers(folder)
    written = make_checkpoint(folder / STAGING, 8)
    assert publish(written, folder, state={"step": 8}, keep=2) == folder / "checkpoint-8"
    # 20 is of a future that was given up: the run comes there again.
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-20", "checkpoint-6", "checkpoint-8"]
    verify_checkpoint(folder / "checkpoint-8")
    publish(make_checkpoint(folder / STAGING, 20), folder, state={"step": 20}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-20"]


def test_the_step_is_that_of_the_checkpoint_whatever_its_folder_is_called(run: RunDirectory) -> None:
    copy = make_checkpoint(run.checkpoints, 5).rename(run.path / "best-so-far")
    assert find_start(run, RECIPE, str(copy)).step == 5
    assert find_start(run, RECIPE, "auto").step is None
    make_checkpoint(run.checkpoints, 7)
    assert find_start(run, RECIPE, "auto").step == 7


def test_a_completed_run_is_done(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(run.checkpoints, 5)
    record = {"run": "a-seed1", "recipe": RECIPE, "status": "completed"}
    monkeypatch.setattr(run_directory, "read_record", lambda path: record)
    assert find_start(run, RECIPE, "auto").kind == "completed"


def test_a_checkpoint_that_does_not_fit_is_told(tmp_path: Path) -> None:
    fingerprint = recipe_fingerprint(RECIPE)
    with pytest.raises(UserError, match="there is no checkpoint folder"):
        check_resumable(tmp_path / "none", fingerprint)
    other = make_checkpoint(tmp_path, 1, "another")
    with pytest.raises(UserError, match="another recipe or seed"):
        check_resumable(other, fingerprint)
    damaged = make_checkpoint(tmp_path, 2)
    (damaged / STATE_NAME).write_text("{")
    with pytest.raises(UserError, match=f"damaged .{STATE_NAME} has 1 bytes"):
        check_resumable(damaged, fingerprint)
    seal(damaged)  # by somebody else
    with pytest.raises(UserError, match="damaged"):
        check_resumable(damaged, fingerprint)
    (damaged / "optimizer.pt").unlink()
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no optimizer.pt, model.safetensors"):
        check_resumable(damaged, fingerprint)


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.locked(), pytest.raises(UserError, match="another process"), directory.locked():
        pass
    with directory.locked():
        pass
    assert find_start(directory, RECIPE, "never").kind == "new"  # the lock file is no content


def test_first_difference_names_a_key_that_is_missing() -> None:
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1, "c": [2]}}) == "a.c is None there and [2] here"
    assert first_difference({"a": (1, 2)}, {"a": [1, 2]}) == ""


def test_an_earlier_run_is_set_aside_and_kept(run: RunDirectory) -> None:
    for number in (1, 2):
        aside = set_run_aside(run.path)
        assert aside == run.path.with_name(f"run.earlier-{number}").resolve()
        assert (aside / "record.json").is_file() and not run.path.exists()
        assert find_start(run, RECIPE, "auto").kind == "new"
        assert set_run_aside(run.path) is None
        run.path.mkdir()
        run.record.write_text("{}")


def test_a_run_behind_a_link_is_set_aside_and_the_link_leads_to_the_new_one(run: RunDirectory) -> None:
    link = run.path.with_name("link")
    link.symlink_to(run.path)
    assert set_run_aside(link) == run.path.with_name("run.earlier-1").resolve()
    with RunDirectory(link).locked():
        assert find_start(RunDirectory(link), RECIPE, "auto").kind == "new"
    assert link.resolve() == run.path.resolve()


def test_a_record_that_was_not_finished_is_no_run_to_set_aside(tmp_path: Path) -> None:
    (tmp_path / f".{RECORD_NAME}.7.tmp").write_text("{")
    assert set_run_aside(tmp_path) is None
    assert find_start(RunDirectory(tmp_path), RECIPE, "auto").kind == "new"


def test_only_a_run_that_nobody_trains_is_set_aside(run: RunDirectory) -> None:
    with run.locked(), pytest.raises(UserError, match="another process is training"):
        set_run_aside(run.path)
    run.record.rename(run.path / "letter.txt")
    with pytest.raises(UserError, match="holds no run"):
        set_run_aside(run.path)
    assert (run.path / "letter.txt").is_file()
