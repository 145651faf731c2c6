"""Progress where no terminal is: plain lines, also while the work tells nothing."""

from __future__ import annotations

import time

from layerroute.data import progress
from layerroute.data.progress import _line, stages


def test_plain_lines_come_while_work_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with stages(True) as stage:
        advance = stage("fitting")
        advance(0.5)
        time.sleep(0.2)
        stage("searching")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("fitting: 50%, 0:0") and line.endswith("left") for line in lines)
    assert any(line.startswith("searching: 0:0") for line in lines)


def test_short_work_and_progress_that_is_off_say_nothing(capsys):
    for enabled in (True, False):
        with stages(enabled) as stage:
            stage("fitting")(0.5)
    assert capsys.readouterr().err == ""


def test_a_line_tells_share_time_and_what_is_left():
    assert _line("fits", 0.25, 30.0) == "fits: 25%, 0:30 so far, about 1:30 left"
    assert _line("fits", None, 61.0) == "fits: 1:01 so far"
