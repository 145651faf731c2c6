"""Which runs a study plans, claims, repeats and chooses. Nothing is trained here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from sqlalchemy.exc import IntegrityError, OperationalError

from layerroute.errors import UserError
from layerroute.studies import board as board_module
from layerroute.studies.configuration import load_study
from layerroute.studies.identity import known_dead, worker_name
from layerroute.studies.plan import Plan
from layerroute.studies.session import Session
from tests.unit.studies.conftest import take, write_study

MakeSession = Callable[..., Session]


def test_arms_times_seeds(make_session: MakeSession) -> None:
    session = make_session(overrides={"train.max_steps": 3})
    session.begin()
    session.begin()  # twice is once
    assert list(session.states()) == [
        f"runs/{arm}-seed{seed}" for seed in (1, 2) for arm in ("routed", "static")
    ]
    recipe = session.plan.recipe("static", 2, {})
    assert (recipe.name, recipe.seed, recipe.train.max_steps) == ("static", 2, 3)


def test_a_grid_makes_arms(make_session: MakeSession) -> None:
    keys = {"model.routing.rate": [0.1, 0.25], "train.batch_size": [4, 8]}
    held = {"model.routing.budget": "quantile"}
    plan = make_session(arms=["routed.yaml"], overrides=held, sweep={"keys": keys}).plan
    assert list(plan.variants) == [f"routed-rate{r}-batch_size{b}" for r in (0.1, 0.25) for b in (4, 8)]
    recipe = plan.recipe("routed-rate0.25-batch_size4", 1, {})
    assert (recipe.model["routing"]["rate"], recipe.train.batch_size) == (0.25, 4)
    assert plan.size() == 8


def test_two_arms_of_one_name_are_refused(make_session: MakeSession) -> None:
    with pytest.raises(UserError, match="two arms are named 'routed'"):
        make_session(arms=["routed.yaml", "routed.yaml"])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1e-3, 1e-2, 1e-3], "train.learning_rate 0.001 and train.learning_rate 0.001"),
        ([0.0010000001, 1e-3], "train.learning_rate 0.0010000001 and train.learning_rate 0.001"),
    ],
)
def test_two_values_of_one_name_are_refused(
    make_session: MakeSession, values: list[float], words: str
) -> None:
    for section, content in (
        ("tune.grid", {"tune": {"grid": {"train.learning_rate": values}, "seeds": [9]}}),
        ("sweep.keys", {"sweep": {"keys": {"train.learning_rate": values}}}),
    ):
        with pytest.raises(UserError) as error:
            make_session(arms=["static.yaml"], **content)
        assert f"{section}: {words} would both be named 'learning_rate0.001'" in str(error.value)


def test_the_command_line_is_laid_over_all_that_the_file_sets(tmp_path: Path) -> None:
    arm = {"recipe": "static.yaml", "overrides": {"train.max_steps": 30}}
    tune = {"grid": {"train.learning_rate": [1e-3]}, "seeds": [9], "overrides": {"train.max_steps": 20}}
    study = write_study(tmp_path, arms=[arm], overrides={"train": {"max_steps": 10}}, tune=tune)
    for given, steps in (
        ({}, (30, 20)),
        ({"train.max_steps": "2"}, (2, 2)),
        ({"train": "{max_steps: 2}"}, (2, 2)),
    ):
        plan = Plan(load_study(study, given))
        (trial,) = plan.trial_runs("static")
        runs = (plan.recipe("static", 1, {}), plan.recipe("static", 9, trial.settings))
        assert tuple(recipe.train.max_steps for recipe in runs) == steps


def test_an_arm_adds_to_what_all_arms_share_however_either_is_written(make_session: MakeSession) -> None:
    for shared in ({"train": {"max_steps": 7}}, {"train.max_steps": 7}):
        for own in ({"train": {"batch_size": 2}}, {"train.batch_size": 2}):
            plan = make_session(arms=[{"recipe": "static.yaml", "overrides": own}], overrides=shared).plan
            train = plan.recipe("static", 1, {}).train
            assert (train.max_steps, train.batch_size) == (7, 2)


def test_an_arm_that_does_not_exist_is_told(make_session: MakeSession) -> None:
    with pytest.raises(UserError, match="nowhere"):
        make_session(arms=["nowhere.yaml"])


def test_a_run_is_claimed_once_by_many(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(seeds=list(range(6)))
    session.begin()
    claimed: list[str] = []

    def work() -> None:
        own = Session(session.plan, session.out)  # a connection of its own, as another process has
        while taken := own.claim():
            claimed.append(taken[1].key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(session.states())
    assert len(claimed) == 12


def test_results_failures_and_returns_are_told_apart(make_session: MakeSession) -> None:
    session = make_session()
    session.begin()
    board, first = take(session)
    board.complete(first, [1.5, 100.0])
    board, second = take(session)
    board.fail(second, "it diverged")
    board, third = take(session)
    board.release(third)
    states = session.states()
    assert states[first.key].values == (1.5, 100.0)
    assert (states[second.key].status, states[second.key].error) == ("failed", "it diverged")
    assert (states[third.key].status, states[third.key].attempts) == ("waiting", 0)
    session.begin()  # a failure stays what it is
    assert session.states()[second.key].status == "failed"
    session.begin(again=True)
    assert session.states()[second.key].status == "waiting"
    assert not session.over()


def test_the_run_of_a_dead_worker_waits_again_as_often_as_allowed(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "_TO_SIGN", board_module.timedelta(0))
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    session = make_session(arms=["static.yaml"], seeds=[1], retries=1)
    session.begin()
    for attempt in (1, 2):
        _, claim = take(session)
        assert session.states()[claim.key].attempts == attempt
        session.advance()
        assert session.states()[claim.key].status == "running", "a living worker keeps its run"
        claim.trial.set_user_attr("worker", worker_name().replace(f":{os.getpid()}:", f":{ended.pid}:"))
        session.advance()
    state = session.states()[claim.key]
    assert (state.status, state.attempts) == ("failed", 2)
    assert state.error == "its worker died, 2 times in all"


def test_a_worker_elsewhere_is_given_up_when_its_heart_stops(make_session: MakeSession) -> None:
    session = make_session(arms=["static.yaml"], seeds=[1], heartbeat=1, grace=1)
    session.begin()
    board, claim = take(session)
    claim.trial.set_user_attr("worker", "elsewhere:1:x")
    with board.alive(claim):
        time.sleep(2.2)
        session.advance()
        assert session.states()[claim.key].status == "running"
    time.sleep(2.2)
    session.advance()
    assert session.states()[claim.key].status == "waiting"
    board.complete(claim, [1.0, 1.0])  # it lived after all: the run is another's now, and nothing breaks
    assert session.states()[claim.key].status == "waiting"


def test_the_living_are_not_known_dead() -> None:
    assert not known_dead(worker_name())
    assert not known_dead("elsewhere:1:x")
    assert not known_dead("")
    assert known_dead(worker_name() + "0"), "the same number, started at another time, is another process"


def test_a_changed_study_is_refused(make_session: MakeSession) -> None:
    make_session().begin()
    with pytest.raises(UserError, match="changed since it was begun"):
        make_session(overrides={"train.max_steps": 4}).begin()


def test_a_study_that_shrank_is_refused_and_left_as_it_was(make_session: MakeSession) -> None:
    make_session(seeds=[1, 2]).begin()
    for less, what in (
        ({"arms": ["routed.yaml"]}, "runs/static-seed1"),
        ({"seeds": [1]}, "runs/routed-seed2"),
    ):
        with pytest.raises(UserError, match=f"has {what}, which the study file does not ask for"):
            make_session(**less).begin()
    changed = {
        "arms": [{"recipe": "routed.yaml", "name": "new"}, "static.yaml", "routed.yaml"],
        "overrides": {"train.max_steps": 4},
    }
    with pytest.raises(UserError, match="changed since it was begun"):
        make_session(**changed).begin()
    session = make_session(seeds=[1, 2])
    session.begin()
    assert len(session.states()) == session.plan.size() == 4


def test_a_study_may_grow(make_session: MakeSession) -> None:
    make_session(arms=["routed.yaml"], seeds=[1]).begin()
    session = make_session(arms=["routed.yaml", "static.yaml"], seeds=[1, 2, 3])
    session.begin()
    assert len(session.states()) == session.plan.size() == 6


def test_other_objectives_of_the_same_direction_are_refused(make_session: MakeSession) -> None:
    make_session(objectives={"metrics.validation_loss": "minimize"}).begin()
    make_session(objectives={"metrics.validation_loss": "minimize"}).begin()
    with pytest.raises(UserError, match=r"has other objectives \(metrics.validation_loss: minimize\)"):
        make_session(objectives={"timing.train_seconds": "minimize"}).begin()


def test_a_sampled_sweep_with_other_seeds_or_another_range_is_refused(make_session: MakeSession) -> None:
    def begin(high: float = 1e-2, trials: int = 2, **more: Any) -> None:
        keys = {"train.learning_rate": {"low": 1e-4, "high": high}}
        make_session(sweep={"keys": keys, "sampler": "random", "trials": trials}, **more).begin()

    begin()
    begin(trials=3)
    for other in ({"high": 0.5}, {"seeds": [1]}):
        with pytest.raises(UserError, match="changed since it was begun"):
            begin(**{"trials": 3, **other})
    with pytest.raises(UserError, match="has runs/routed-t002, which the study file does not ask for"):
        begin(trials=2)


def test_a_sampled_sweep_that_is_refused_for_one_arm_is_left_as_it_was(make_session: MakeSession) -> None:
    def begin(trials: int, steps: int) -> Session:
        sweep = {"keys": {"train.learning_rate": [1e-3, 1e-2]}, "sampler": "random", "trials": trials}
        arms = ["routed.yaml", {"recipe": "static.yaml", "overrides": {"train.max_steps": steps}}]
        session = make_session(arms=arms, sweep=sweep)
        session.begin()
        return session

    begin(2, 3)
    with pytest.raises(UserError, match="has runs/static-t000 with another recipe"):
        begin(3, 4)
    assert len(begin(2, 3).states()) == 4


def test_a_sampled_sweep_draws_as_many_points_in_each_arm(make_session: MakeSession) -> None:
    keys = {
        "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.batch_size": {"low": 4, "high": 8},
        "model.hidden_size": [32, 64],
    }
    session = make_session(sweep={"keys": keys, "sampler": "nsga2", "trials": 4})
    session.begin()
    drawn = {}
    while taken := session.claim():
        board, claim = taken
        runs = session.runs_of(claim)
        assert [run.seed for run in runs] == [1, 2]
        assert runs[0].settings == runs[1].settings
        recipe = session.plan.recipe(runs[0].variant, 1, runs[0].settings)
        assert 1e-4 <= recipe.train.learning_rate <= 1e-2
        assert 4 <= recipe.train.batch_size <= 8
        drawn[claim.key] = tuple(runs[0].settings.values())
        board.complete(claim, [1.0, 1.0])
    assert sorted(drawn) == [f"runs/{arm}-t{n:03d}" for arm in ("routed", "static") for n in range(4)]
    # A sampler knows nothing at first: both arms get the same points, which makes them pairs.
    assert len(set(drawn.values())) == 4
    assert all(drawn[f"runs/routed-t{n:03d}"] == drawn[f"runs/static-t{n:03d}"] for n in range(4))


@pytest.mark.parametrize("name", ["what?if", "100%41", "a#b", "{SCHEMA}", "ü ber"])
def test_the_storage_is_in_the_folder_whatever_its_name(
    make_session: MakeSession, tmp_path: Path, name: str
) -> None:
    session = Session(make_session().plan, tmp_path / name)
    session.begin()
    assert {path.name for path in (tmp_path / name).iterdir()} == {"study.db", "study.db.lock"}
    worker = Session(session.plan, tmp_path / name, session.storage)  # as the command line hands it on
    assert len(worker.states()) == 4


def test_one_of_two_that_find_a_worker_dead_without_a_lock_lets_its_run_wait_again(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on PostgreSQL: the second one comes between the look and the write of the first."""
    monkeypatch.setattr(board_module, "_TO_SIGN", board_module.timedelta(0))
    session, other = (
        make_session(arms=["static.yaml"], seeds=[1]),
        make_session(arms=["static.yaml"], seeds=[1]),
    )
    session.begin()
    board, claim = take(session)
    for each in (session, other):
        each.boards[""]._lock = contextlib.nullcontext()
    looks: list[str] = []

    def dead(name: str) -> bool:
        looks.append(name)
        if len(looks) == 1:
            other.advance()
        return True

    monkeypatch.setattr(board_module, "known_dead", dead)
    session.advance()
    assert len(looks) == 2
    state = session.states()[claim.key]
    assert (state.status, state.attempts) == ("waiting", 1)
    assert len(board._study.get_trials()) == 2
    board.complete(claim, [1.0, 1.0])  # it lived after all, and nothing breaks
    assert session.states()[claim.key].status == "waiting"


def test_tables_that_another_machine_makes_just_now_are_waited_for(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen on PostgreSQL: both machines found it empty, and one was told that a key exists."""
    calls: list[str] = []

    class Contested(optuna.storages.RDBStorage):
        def __init__(self, url: str, **options: Any) -> None:
            calls.append(url)
            if len(calls) < 3:
                raise IntegrityError("CREATE TABLE studies", None, Exception("duplicate key value"))
            super().__init__(url, **options)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Contested)
    monkeypatch.setattr(board_module, "_BETWEEN_OPENINGS", 0.0)
    session = make_session()
    session.begin()
    assert len(calls) == 3 and len(session.states()) == 4


def test_a_server_that_does_not_answer_is_not_waited_for(
    make_session: MakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def storage(url: str, **_: Any) -> None:
        calls.append(url)
        raise OperationalError("SELECT 1", None, Exception("connection refused"))

    monkeypatch.setattr(optuna.storages, "RDBStorage", storage)
    with pytest.raises(UserError, match="connection refused"):
        make_session()
    assert len(calls) == 1


def test_a_driver_that_is_not_installed_is_named(make_session: MakeSession, tmp_path: Path) -> None:
    plan = make_session().plan
    with pytest.raises(UserError, match=r"No module named .*install the driver"):
        Session(plan, tmp_path / "out", "postgresql+pg8000://me:secret@host/studies")


def test_a_storage_that_is_none_is_told(make_session: MakeSession, tmp_path: Path) -> None:
    plan = make_session().plan
    for url, words in (
        ("nonsense", "is not a URL of a database"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql://nobody:secret@127.0.0.1:9/none", "cannot open"),
    ):
        with pytest.raises(UserError, match=words) as error:
            Session(plan, tmp_path / "out", url)
        assert "secret" not in str(error.value)
    make_session().begin()
    other = tmp_path / "other.yaml"
    other.write_text(
        yaml.safe_dump(
            {
                "name": "study",
                "arms": ["static.yaml"],
                "seeds": [1],
                "objectives": {"metrics.steps": "maximize"},
            }
        )
    )
    with pytest.raises(UserError, match="has other objectives"):
        Session(Plan(load_study(other)), tmp_path / "out")
