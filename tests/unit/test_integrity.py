"""Manifests tell every damage, and names stay in their folder."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from layerroute import integrity
from layerroute.errors import UserError
from layerroute.integrity import (
    MANIFEST,
    DamagedError,
    checksummed,
    clear_asides,
    file_sha256,
    inside,
    replace_text,
    replacing,
    seal,
    verify,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "deep").mkdir(parents=True)
    (made / "a.bin").write_bytes(bytes(range(100)))
    (made / "deep" / ".hidden").write_text("x")
    (made / ".nfs0001").write_text("left by the file system")
    seal(made, {"step": 3})
    return made


def test_an_intact_folder_is_what_it_says(folder: Path) -> None:
    manifest = verify(folder)
    assert manifest["step"] == 3
    assert sorted(manifest["files"]) == ["a.bin", "deep/.hidden"]


@pytest.mark.parametrize("name", ["a.bin", "deep/.hidden", MANIFEST])
def test_every_damage_is_told(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 32]) + whole[position + 1 :])
        with pytest.raises(DamagedError):
            verify(folder)
        path.write_bytes(whole[:position])
        with pytest.raises(DamagedError):
            verify(folder)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        verify(folder)
    path.mkdir()
    with pytest.raises(DamagedError):
        verify(folder)


def test_a_pipe_in_the_place_of_a_file_is_damage_and_nobody_waits_for_it(folder: Path) -> None:
    (folder / "a.bin").unlink()
    os.mkfifo(folder / "a.bin")
    with pytest.raises(DamagedError, match="not a regular file"):
        verify(folder)


def test_a_file_is_replaced_and_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    for name in ("a.txt", f".a.txt.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(elsewhere)
    replace_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert elsewhere.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "elsewhere"]


def test_two_processes_replace_the_same_file_and_the_last_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as aside:
        aside.write_text("half of ")
        with monkeypatch.context() as other:
            other.setattr("os.getpid", lambda: -1)
            replace_text(path, "whole")
        assert path.read_text() == "whole"
        aside.write_text("the last")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "the last")]


def test_what_a_killed_process_was_writing_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("record.json", ".lock", ".notes.tmp", "record.json.17.tmp")]
    for path in [*kept, tmp_path / ".record.json.17.tmp"]:
        path.write_text("half", encoding="utf-8")
    clear_asides(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "new \ud800")
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "old")]


def test_what_is_not_listed_is_damage_where_the_list_is_exact(folder: Path) -> None:
    (folder / "more").write_text("")
    with pytest.raises(DamagedError, match="it holds more, which"):
        verify(folder)
    verify(folder, exact=False)


def test_damage_that_keeps_size_and_time_is_found_by_whoever_asks_again(folder: Path) -> None:
    verify(folder)
    path = folder / "a.bin"
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    verify(folder)
    integrity._verified.clear()
    with pytest.raises(DamagedError, match="SHA-256"):
        verify(folder)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "a\0b", "link/a"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="nothing was read"):
        inside(folder, name)


def test_names_inside_are_taken(tmp_path: Path) -> None:
    for name in ("a", "a/b", "a..b", "..a", "a/./b"):
        assert inside(tmp_path, name).is_relative_to(tmp_path)


def test_a_manifest_that_fits_but_names_what_lies_outside_is_refused(tmp_path: Path) -> None:
    """Whoever changes files can write a manifest; it must not make us read elsewhere."""
    folder = tmp_path / "folder"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text(str(random.Random(0).random()))
    listed = {"../secret": {"bytes": secret.stat().st_size, "sha256": file_sha256(secret)}}
    (folder / MANIFEST).write_bytes(checksummed({"files": listed}, sort_keys=True))
    with pytest.raises(DamagedError, match="lies outside of the folder"):
        verify(folder)
