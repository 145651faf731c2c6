import os
from pathlib import Path

import pytest

from layerroute.folders import recover_folder, replace_folder
from layerroute.integrity import MANIFEST, verify


def content(path: Path) -> dict[str, str]:
    verify(path)
    return {file.name: file.read_text() for file in path.iterdir() if file.name != MANIFEST}


def save(path: Path, text: str, *, fails: bool = False) -> None:
    def write(folder: Path) -> None:
        (folder / "model").write_text(text)
        if fails:
            raise OSError(28, "No space left on device")
        (folder / "tokenizer").write_text(text)

    replace_folder(path, write)


def test_the_new_model_takes_the_place_of_the_old(tmp_path: Path) -> None:
    save(tmp_path / "best", "one")
    save(tmp_path / "best", "two")
    assert content(tmp_path / "best") == {"model": "two", "tokenizer": "two"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["best"]


def test_a_write_that_fails_leaves_the_old_model(tmp_path: Path) -> None:
    save(tmp_path / "best", "one")
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "best", "two", fails=True)
    assert content(tmp_path / "best") == {"model": "one", "tokenizer": "one"}
    save(tmp_path / "best", "three")
    assert content(tmp_path / "best")["model"] == "three"


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_kill_between_any_two_moves_loses_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    save(tmp_path / "best", "one")
    moves = 0
    replace = os.replace

    def die(*arguments: Path) -> None:
        nonlocal moves
        if moves == killed_at:
            raise SystemExit
        moves += 1
        replace(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        if killed_at < 2:
            with pytest.raises(SystemExit):
                save(tmp_path / "best", "two")
        else:
            save(tmp_path / "best", "two")
    recover_folder(tmp_path / "best")
    whole = {0: "one", 1: "two", 2: "two"}[killed_at]
    assert content(tmp_path / "best") == {"model": whole, "tokenizer": whole}
    assert [entry.name for entry in tmp_path.iterdir()] == ["best"]


def test_there_is_nothing_to_recover_of_a_model_never_finished(tmp_path: Path) -> None:
    (tmp_path / ".best.saving").mkdir()
    recover_folder(tmp_path / "best")
    assert not list(tmp_path.iterdir())
