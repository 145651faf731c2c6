"""Entries are whole or not there, and no damaged byte is ever read."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from layerroute.errors import UserError
from layerroute.folders import open_or_build, read_entry
from layerroute.integrity import MANIFEST, DamagedError, Manifest

FILES = ("a.bin", "b.json")
WHAT = "token cache"


def build(folder: Path) -> Manifest:
    (folder / "a.bin").write_bytes(bytes(range(40)))
    (folder / "b.json").write_text('{"x": 1}')
    return {"count": 40}


def refuse(folder: Path) -> Manifest:
    raise AssertionError("an intact entry was built again")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    made = tmp_path / "tokens" / "key"
    open_or_build(made, FILES, build, what=WHAT)
    return made


def test_an_entry_is_built_once_and_read_after(entry: Path) -> None:
    assert sorted(path.name for path in entry.iterdir()) == ["a.bin", "b.json", MANIFEST]
    assert open_or_build(entry, FILES, refuse, what=WHAT)["count"] == 40
    assert read_entry(entry, FILES)["files"]["a.bin"]["bytes"] == 40


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_flipped_byte_and_every_truncation_is_found(entry: Path, name: str) -> None:
    path = entry / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            read_entry(entry, FILES)
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read_entry(entry, FILES)
    path.write_bytes(whole + b"\n")
    with pytest.raises(DamagedError):
        read_entry(entry, FILES)
    path.write_bytes(whole)
    read_entry(entry, FILES)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "folder"])
def test_a_damaged_entry_is_rebuilt_with_one_warning(
    entry: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = entry / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(whole[:5] + bytes([whole[5] ^ 4]) + whole[6:])
    elif damage == "truncate":
        path.write_bytes(whole[:-1])
    elif damage == "folder":
        path.mkdir()
    assert open_or_build(entry, FILES, build, what=WHAT)["count"] == 40
    assert path.read_bytes() == whole
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is damaged (" in caplog.text and name in caplog.text
    open_or_build(entry, FILES, refuse, what=WHAT)
    assert [path.name for path in entry.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"5", b"{}", b'{"checksum": "x"}', b"\xff", b"[" * 100_000, b'{"files": {}'],
)
def test_manifests_of_other_content_are_damage(entry: Path, content: bytes) -> None:
    (entry / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedError):
        read_entry(entry, FILES)


def test_a_manifest_in_another_spelling_is_damage(entry: Path) -> None:
    """Equal content is not enough: what was not written by us is not read."""
    path = entry / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(DamagedError, match="checksum"):
        read_entry(entry, FILES)


def test_a_manifest_that_does_not_list_a_file_is_damage(tmp_path: Path) -> None:
    entry = tmp_path / "key"

    def half(folder: Path) -> Manifest:
        (folder / "a.bin").write_bytes(b"123")
        return {}

    open_or_build(entry, FILES[:1], half, what=WHAT)
    with pytest.raises(DamagedError, match=r"does not list b\.json"):
        read_entry(entry, FILES)


def test_a_second_look_compares_size_time_and_inode_only(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_entry(entry, FILES)
    monkeypatch.setattr("layerroute.integrity.file_sha256", lambda path: "not called")
    read_entry(entry, FILES)
    os.utime(entry / "a.bin", ns=(0, 0))
    with pytest.raises(DamagedError):
        read_entry(entry, FILES)


def test_a_build_that_fails_leaves_nothing_and_the_old_entry_stays(entry: Path) -> None:
    def fail(folder: Path) -> Manifest:
        build(folder)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        open_or_build(entry.parent / "other", FILES, fail, what=WHAT)
    assert {path.name for path in entry.parent.iterdir()} == {"key", "key.lock", "other.lock"}
    (entry / "a.bin").write_bytes(b"damaged")
    with pytest.raises(RuntimeError):
        open_or_build(entry, FILES, fail, what=WHAT)
    assert (entry / "a.bin").read_bytes() == b"damaged"
    assert open_or_build(entry, FILES, build, what=WHAT)["count"] == 40


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    def fill_up(folder: Path) -> Manifest:
        build(folder)
        raise OSError(code, os.strerror(code))

    with pytest.raises(UserError, match="no space left for the token cache in"):
        open_or_build(tmp_path / "tokens" / "key", FILES, fill_up, what=WHAT)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["key.lock"]


def test_a_cache_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*set LAYERROUTE_CACHE to a folder"):
        open_or_build(tmp_path / "file" / "tokens" / "key", FILES, build, what=WHAT)


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    def fail(folder: Path) -> Manifest:
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        open_or_build(tmp_path / "key", FILES, fail, what=WHAT)


def test_threads_that_want_the_same_entry_build_it_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    builds: list[int] = []
    begun, waited = threading.Event(), threading.Event()

    def slow(folder: Path) -> Manifest:
        builds.append(1)
        begun.set()
        waited.wait(5)
        return build(folder)

    found: list[Manifest] = []
    work: Callable[[], None] = lambda: found.append(open_or_build(tmp_path / "key", FILES, slow, what=WHAT))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(3)]
    threads[0].start()
    assert begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    while caplog.text.count("waiting for it") < 2:
        waited.wait(0.01)
    waited.set()
    for thread in threads:
        thread.join(10)
    assert len(builds) == 1
    assert [manifest["count"] for manifest in found] == [40, 40, 40]


def test_what_a_killed_process_left_is_cleared_by_the_next_build(tmp_path: Path) -> None:
    entry = tmp_path / "key"
    code = (
        "import os, sys, pathlib, signal\n"
        "from layerroute.folders import open_or_build\n"
        "def build(folder):\n"
        "    (folder / 'a.bin').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_or_build(pathlib.Path(sys.argv[1]), ('a.bin',), build, what='entry')\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(entry)], check=False)
    assert killed.returncode == -9
    assert (tmp_path / ".key.saving" / "a.bin").read_bytes() == b"half"
    assert not entry.exists()
    assert open_or_build(entry, FILES, build, what=WHAT)["count"] == 40
    assert {path.name for path in tmp_path.iterdir()} == {"key", "key.lock"}


def test_files_that_are_mapped_outlive_a_rebuild(entry: Path) -> None:
    """A process that reads an entry keeps its bytes when another one replaces the entry."""
    with (entry / "a.bin").open("rb") as mapped:
        shutil.rmtree(entry)
        open_or_build(entry, FILES, build, what=WHAT)
        assert mapped.read() == bytes(range(40))


def test_what_else_was_built_is_sealed_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def more(folder: Path) -> Manifest:
        (folder / "inner").mkdir()
        (folder / "inner" / "c.bin").write_bytes(b"123")
        return build(folder)

    entry = tmp_path / "key"
    open_or_build(entry, FILES, more, what="calibration")
    (entry / "inner" / "c.bin").write_bytes(b"124")
    open_or_build(entry, FILES, more, what="calibration")
    assert (entry / "inner" / "c.bin").read_bytes() == b"123"
    assert "the calibration" in caplog.text
