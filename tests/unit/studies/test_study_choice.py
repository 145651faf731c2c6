"""How arms choose their settings by trials, and how a gate lets a study go on. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerroute.errors import UserError
from layerroute.studies.session import Session
from layerroute.studies.summary import write_summary
from tests.unit.studies.conftest import take

MakeSession = Callable[..., Session]
TUNE = {"grid": {"train.learning_rate": [1e-3, 2e-3, 4e-3]}, "seeds": [8, 9]}


def test_every_arm_chooses_on_the_same_grid_and_runs_with_its_choice(make_session: MakeSession) -> None:
    session = make_session(tune=TUNE)
    session.begin()
    assert len(session.states()) == 2 * 3 * 2
    best = {"routed": 4e-3, "static": 1e-3}
    while taken := session.claim():
        board, claim = taken
        rate = claim.attributes["settings"]["train.learning_rate"]
        if claim.attributes["variant"] == "static" and rate == 2e-3 and claim.attributes["seed"] == 9:
            board.fail(claim, "diverged")
        else:
            loss = abs(rate - best[claim.attributes["variant"]]) if claim.attributes["seed"] == 8 else 0.0
            board.complete(claim, [loss, 5.0])
    assert session.over()
    session.advance()
    assert not session.over()
    finals = {key: state for key, state in session.states().items() if key.startswith("runs/")}
    assert list(finals) == [f"runs/{arm}-seed{seed}" for arm in ("routed", "static") for seed in (1, 2)]
    for key, state in finals.items():
        arm = key.removeprefix("runs/").partition("-")[0]
        assert state.attributes["settings"] == {"train.learning_rate": best[arm]}
    assert len(finals) + 12 == session.plan.size()


def play_trials(session: Session, loss: dict[float, float], failing: float | None = None) -> None:
    """Run all that waits: the loss is that of the learning rate, one of which may fail."""
    while taken := session.claim():
        board, claim = taken
        rate = claim.attributes["settings"]["train.learning_rate"]
        if rate == failing and claim.key.startswith("search/"):
            board.fail(claim, "out of memory")
        else:
            board.complete(claim, [loss[rate], 5.0])
        session.advance()


def test_a_choice_stays_when_a_trial_that_failed_is_run_again(make_session: MakeSession) -> None:
    tune = {"grid": {"train.learning_rate": [1e-3, 1e-2]}, "seeds": [9]}
    session = make_session(tune=tune)
    session.begin()
    play_trials(session, {1e-3: 3.0}, failing=1e-2)
    runs = {key: state for key, state in session.states().items() if key.startswith("runs/")}
    assert session.over() and len(runs) == 4
    again = make_session(tune=tune)
    again.begin(again=True)
    assert [key for key, state in again.states().items() if state.status == "waiting"] == [
        f"search/{arm}-learning_rate0.01-seed9" for arm in ("routed", "static")
    ]
    play_trials(again, {1e-2: 2.0})  # better than what the arms had chosen
    make_session(tune=tune).begin()
    assert again.over() and len(again.states()) == 8
    assert {key: again.states()[key] for key in runs} == runs
    chosen = write_summary(again)["chosen"]
    assert chosen == {arm: {"train.learning_rate": 1e-3} for arm in ("routed", "static")}


def test_a_trial_that_is_run_again_has_a_say_where_nothing_is_reported_yet(make_session: MakeSession) -> None:
    tune = {"grid": {"train.learning_rate": [1e-3, 1e-2]}, "seeds": [9]}
    session = make_session(arms=["static.yaml"], tune=tune)
    session.begin()
    for _ in range(2):  # the process ends before the arm has chosen
        board, claim = take(session)
        if claim.attributes["settings"]["train.learning_rate"] == 1e-2:
            board.fail(claim, "out of memory")
        else:
            board.complete(claim, [3.0, 5.0])
    session.begin(again=True)
    play_trials(session, {1e-3: 3.0, 1e-2: 2.0})
    assert session.chosen("static", session.states()) == {"train.learning_rate": 1e-2}


def test_reported_runs_that_failed_are_run_again_whatever_a_trial_of_the_gate_does(
    make_session: MakeSession,
) -> None:
    session = make_session(**GATED)
    session.begin()
    while taken := session.claim():
        board, claim = taken
        if claim.key.startswith("runs/") or claim.attributes["settings"]["train.learning_rate"] == 4e-3:
            board.fail(claim, "diverged")
        else:
            arm, rate = claim.attributes["variant"], claim.attributes["settings"]["train.learning_rate"]
            board.complete(claim, [rate, {"routed": 1.0, "static": 0.1}.get(arm, 0.5)])
        session.advance()
    failed = {key for key, state in session.states().items() if state.status == "failed"}
    assert {key for key in session.states() if key.startswith("runs/")} < failed
    session.begin(again=True)
    assert {key for key, state in session.states().items() if state.status == "waiting"} == failed


def test_settings_with_which_a_seed_failed_are_not_chosen(make_session: MakeSession) -> None:
    session = make_session(arms=["static.yaml"], tune=TUNE)
    session.begin()
    while taken := session.claim():
        board, claim = taken
        rate, seed = claim.attributes["settings"]["train.learning_rate"], claim.attributes["seed"]
        if rate == 4e-3 and seed == 8:
            board.fail(claim, "diverged")
        else:
            board.complete(claim, [1.0 - 100 * rate, 5.0])
    assert session.chosen("static", session.states()) == {"train.learning_rate": 2e-3}


GATE = {
    "conditions": [{"arm": "routed", "least": 0.99}, {"arm": "static", "most": 0.4}],
    "metric": "metrics.validation_accuracy",
}
GATED: dict[str, Any] = {
    "arms": ["routed.yaml", "static.yaml", {"recipe": "static.yaml", "name": "other"}],
    "tune": TUNE,
    "gate": GATE,
    "objectives": {"metrics.best_validation_loss": "minimize", "metrics.validation_accuracy": "maximize"},
}


def play(session: Session, accuracy: dict[str, float], failing: str = "") -> None:
    """Run all trials that wait: each arm has its accuracy at 2e-3, which has the lowest loss, and less elsewhere."""
    while taken := session.claim():
        board, claim = taken
        arm, rate = claim.attributes["variant"], claim.attributes["settings"]["train.learning_rate"]
        if arm == failing:
            board.fail(claim, "diverged")
            continue
        wobble = 0.01 if claim.attributes["seed"] == 9 else -0.01
        loss = abs(rate - 2e-3)
        board.complete(claim, [loss, accuracy.get(arm, 0.5) + wobble if loss == 0 else 0.7])


def test_a_gate_that_is_passed_lets_the_study_go_on(make_session: MakeSession, tmp_path: Path) -> None:
    session = make_session(**GATED)
    session.begin()
    assert {state.attributes["variant"] for state in session.states().values()} == {"routed", "static"}
    assert session.gate(session.states()) is None, "nothing is said before the trials are over"
    session.advance()
    assert len(session.states()) == 2 * 3 * 2
    play(session, {"routed": 0.99, "static": 0.4})
    gate = session.gate(session.states())
    assert gate is not None and gate.passed
    assert [one.value for one in gate.conditions] == pytest.approx([0.99, 0.4])
    session.advance()
    states = session.states()
    trials = [key for key in states if key.startswith("search/other")]
    assert len(trials) == 6 and not any(key.startswith("runs/other") for key in states)
    assert len([key for key in states if key.startswith("runs/")]) == 2 * 2
    play(session, {})
    session.advance()
    assert len(session.states()) == session.plan.size()
    found = write_summary(session)
    assert found["gate"]["passed"] and "can tell" in found["gate"]["verdict"]


@pytest.mark.parametrize(
    ("accuracy", "failing", "words"),
    [
        ({"routed": 0.98, "static": 0.1}, "", "routed 0.98 (at least 0.99 asked)."),
        ({"routed": 1.0, "static": 0.41}, "", "static 0.41 (at most 0.4 asked)."),
        ({"routed": 1.0}, "static", "static no completed trial (at most 0.4 asked)."),
    ],
)
def test_a_gate_that_is_not_passed_ends_the_study(
    make_session: MakeSession, accuracy: dict[str, float], failing: str, words: str
) -> None:
    session = make_session(**GATED)
    session.begin()
    play(session, accuracy, failing)
    session.advance()
    assert session.over()
    assert all(key.startswith(("search/routed", "search/static")) for key in session.states())
    found = write_summary(session)
    assert not found["gate"]["passed"]
    assert "this task cannot tell" in found["gate"]["verdict"] and words in found["gate"]["verdict"]
    assert set(found["chosen"]) == {"routed", "static"}, "of arms that had no trial nothing is said"


def test_a_gate_names_arms_that_are_there(make_session: MakeSession) -> None:
    gate = {"conditions": [{"arm": "rooted", "least": 0.9}]}
    with pytest.raises(UserError, match=r"there is no arm 'rooted'. Did you mean 'routed'"):
        make_session(**{**GATED, "gate": gate})


def test_a_tuned_study_grows_by_arms_and_seeds_but_not_by_trials_that_had_no_part_in_a_choice(
    make_session: MakeSession,
) -> None:
    tune = {"grid": {"train.learning_rate": [1e-3]}, "seeds": [9]}
    wider = {"grid": {"train.learning_rate": [1e-3, 1e-2]}, "seeds": [9]}
    make_session(arms=["static.yaml"], tune=tune).begin()
    session = make_session(arms=["static.yaml"], tune=wider)
    session.begin()  # nothing has been chosen yet
    play_trials(session, {1e-3: 3.0, 1e-2: 2.0})
    session = make_session(tune=wider, seeds=[1, 2, 3])
    session.begin()
    play_trials(session, {1e-3: 1.0, 1e-2: 2.0})
    assert session.over() and len(session.states()) == session.plan.size()
    assert write_summary(session)["chosen"] == {
        "routed": {"train.learning_rate": 1e-3},
        "static": {"train.learning_rate": 1e-2},
    }
    with pytest.raises(
        UserError, match=r"has search/static-learning_rate0\.01-seed9, which the study file does not"
    ):
        make_session(tune=tune, seeds=[1, 2, 3]).begin()
    for seeds, grid in (([9, 10], [1e-3, 1e-2]), ([9], [1e-3, 1e-2, 2e-2])):
        with pytest.raises(
            UserError, match=r"has reported runs of routed, and search/routed.* had no part in"
        ):
            make_session(
                tune={"grid": {"train.learning_rate": grid}, "seeds": seeds}, seeds=[1, 2, 3]
            ).begin()
    assert session.over(), "a study that is refused is left as it was"
