"""A run is alive as long as its process is."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from layerroute import liveness
from layerroute.liveness import LOCK, STALE_SECONDS, Heartbeat, hold, is_alive


def test_a_held_folder_is_alive_and_a_left_one_is_not(tmp_path: Path) -> None:
    assert not is_alive(tmp_path)
    with hold(tmp_path) as free:
        assert free
        assert is_alive(tmp_path)
        with hold(tmp_path) as again:
            assert not again
        assert is_alive(tmp_path)
    assert not is_alive(tmp_path)


def test_who_only_looks_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """Looking takes a shared lock for a moment: reports and other workers look all the time."""
    (tmp_path / LOCK).touch()
    with (tmp_path / LOCK).open() as looking:
        liveness.fcntl.flock(looking, liveness.fcntl.LOCK_SH)
        gone = threading.Timer(0.05, liveness.fcntl.flock, (looking, liveness.fcntl.LOCK_UN))
        gone.start()
        with hold(tmp_path) as free:
            assert free and is_alive(tmp_path)
        gone.join()


def test_a_lock_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / LOCK).symlink_to(elsewhere)
    with hold(tmp_path) as free:
        assert free and is_alive(tmp_path)
    assert elsewhere.read_text() == "mine"


def test_where_locks_do_not_reach_the_clock_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path):
        pass
    (tmp_path / LOCK).write_text("another-host\n")
    assert is_alive(tmp_path)
    old = time.time() - STALE_SECONDS - 1
    os.utime(tmp_path / LOCK, (old, old))
    assert not is_alive(tmp_path)
    heartbeat = Heartbeat(tmp_path)
    heartbeat.beat()
    assert not is_alive(tmp_path)  # it beats twice a minute, not at every step
    monkeypatch.setattr(liveness, "_BEAT_SECONDS", 0.0)
    heartbeat.beat()
    assert is_alive(tmp_path)


def test_without_locks_the_clock_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path):
        pass

    def refuse(file: object, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(liveness.fcntl, "flock", refuse)
    with hold(tmp_path) as free:
        assert free, "no lock is no reason not to train"
        assert is_alive(tmp_path)
    assert not is_alive(tmp_path), "it ended a moment ago, and nothing else says so"
    (tmp_path / LOCK).write_text("a host whose process was killed\n")
    assert is_alive(tmp_path)
    old = time.time() - STALE_SECONDS - 1
    os.utime(tmp_path / LOCK, (old, old))
    assert not is_alive(tmp_path)
