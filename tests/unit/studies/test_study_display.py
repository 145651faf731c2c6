"""What a study shows while it runs, and what it comes to: the live table, its plain lines, and ``study.json``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from layerroute.studies.display import StudyLines, StudyTable, last_point
from layerroute.studies.session import Session
from layerroute.studies.summary import FILE, write_summary

MakeSession = Callable[..., Session]


def take(session: Session) -> Any:
    taken = session.claim()
    assert taken is not None
    return taken


def printed(table: StudyTable, width: int = 120, height: int = 40) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, height=height).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def row(lines: list[str], key: str) -> str:
    return next(line for line in lines if line.startswith(key))


def test_the_table_tells_of_each_run_where_it_stands(make_session: MakeSession) -> None:
    session = make_session()
    session.begin()
    table = StudyTable(session)
    table.update(session.states())
    board, done = take(session)
    board.complete(done, [1.23456, 97000.0])
    board, lost = take(session)
    board.fail(lost, "non-finite loss at step 7")
    _, going = take(session)
    curve = session.out / going.key / "curves.jsonl"
    curve.parent.mkdir(parents=True)
    points = [{"step": 5, "split": "train", "lm_loss": 3.25}, {"step": 6, "split": "validation", "loss": 9.0}]
    # The last line is being written just now.
    curve.write_text("".join(f"{json.dumps(point)}\n" for point in points) + '{"step": 10, "spl')
    table.update(session.states())
    lines = printed(table)
    assert lines[0].split() == [
        "Run",
        "State",
        "Step",
        "validation_loss",
        "executed_per_token",
        "Time",
        "Attempts",
    ]
    order = [line.split()[1].rstrip(":") for line in lines[2:6]]
    assert order == ["running", "failed", "waiting", "completed"]
    assert row(lines, going.key).split()[2:4] == ["5", "(3.25)"], "step and loss of the last training point"
    assert "failed: non-finite loss at step 7" in row(lines, lost.key)
    assert row(lines, done.key).split()[2:4] == ["1.2346", "97000"]
    assert lines[-1].startswith("2 of 4 runs over (1 failed), 1 running, about 0:")


def test_a_table_that_is_longer_than_the_screen_says_how_many_more(make_session: MakeSession) -> None:
    session = make_session(seeds=list(range(1, 13)))
    session.begin()
    _, going = take(session)
    table = StudyTable(session)
    table.update(session.states())
    lines = printed(table, height=10)
    assert len(lines) <= 10 and row(lines, going.key), "what runs is always seen"
    assert lines[-2] == "… and 20 more"


def test_without_a_terminal_each_change_is_one_line(make_session: MakeSession) -> None:
    session = make_session(arms=["static.yaml"], seeds=[1])
    session.begin()
    stream = io.StringIO()
    lines = StudyLines(Console(file=stream, width=200))
    lines.update(session.states())
    assert stream.getvalue() == "", "that it waits is nothing new"
    board, claim = take(session)
    lines.update(session.states())
    lines.update(session.states())
    board.complete(claim, [1.5, 100.0])
    lines.update(session.states())
    assert stream.getvalue().split("\n")[:2] == [f"running   {claim.key}", f"completed {claim.key}  1.5 100"]


def test_no_curve_is_no_point(make_session: MakeSession) -> None:
    assert last_point(make_session().out / "nowhere") == {}


def test_the_summary_has_the_front_of_both_objectives_and_every_failure(make_session: MakeSession) -> None:
    session = make_session(seeds=[1, 2, 3])
    session.begin()
    values = {
        "runs/routed-seed1": [1.0, 200.0],
        "runs/static-seed1": [1.5, 100.0],
        "runs/routed-seed2": [1.6, 150.0],  # static-seed1 is better in both
        "runs/static-seed2": [2.0, 90.0],
        "runs/routed-seed3": [1.0, 250.0],  # routed-seed1 is as good for less
    }
    while taken := session.claim():
        board, claim = taken
        if claim.key in values:
            board.complete(claim, values[claim.key])
        else:
            board.fail(claim, "it diverged")
    write_summary(session)
    found = json.loads((session.out / FILE).read_text(encoding="utf-8"))
    assert set(found["front"]) == {"runs/routed-seed1", "runs/static-seed1", "runs/static-seed2"}
    assert found["counts"] == {"completed": 5, "failed": 1, "running": 0, "waiting": 0}
    failed = [run for run in found["runs"] if run["status"] == "failed"]
    assert [(run["run"], run["error"], run["values"]) for run in failed] == [
        ("runs/static-seed3", "it diverged", None)
    ]


def test_what_is_maximized_is_so_in_the_front_and_choices_at_the_edge_are_told(
    make_session: MakeSession,
) -> None:
    tune = {"grid": {"train.learning_rate": [1e-3, 2e-3, 4e-3]}, "seeds": [8]}
    objectives = {"metrics.validation_accuracy": "maximize", "parameters.total": "minimize"}
    session = make_session(arms=["static.yaml"], seeds=[1, 2], tune=tune, objectives=objectives)
    session.begin()
    while True:
        taken = session.claim()
        if taken is None:
            session.advance()
            taken = session.claim()
        if taken is None:
            break
        board, claim = taken
        rate = claim.attributes["settings"]["train.learning_rate"]
        board.complete(claim, [rate + 0.1 * claim.attributes["seed"], 100.0])
    found = write_summary(session)
    assert found["chosen"] == {"static": {"train.learning_rate": 4e-3}}
    assert found["at_the_edge"] == ["static: train.learning_rate 0.004"]
    assert found["front"] == ["runs/static-seed2"], "trials are no part of it"
