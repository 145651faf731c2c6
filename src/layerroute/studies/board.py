"""The board on which all workers of a study see what is to be run: one Optuna study, one trial an attempt.

A run is known by its key. Its latest trial is its state; an attempt whose worker died stays on the board as a failed
trial with no error of its own, followed by the trial that tries again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from layerroute.errors import UserError, require

require("optuna", "sqlalchemy", extra="study")
import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from layerroute.studies.identity import known_dead, worker_name

HEARTBEAT = 30
GRACE = 180
"""Seconds between signs of life, and without one until a worker on another machine is taken for dead."""

_TO_SIGN = timedelta(seconds=2)
_OPENINGS, _BETWEEN_OPENINGS = 5, 0.5

optuna.logging.set_verbosity(optuna.logging.WARNING)

Status = Literal["waiting", "running", "completed", "failed"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands.

    Attributes:
        attempts: how often a worker began it; 2 means that one worker died.
        error: why it failed, None otherwise.
        values: of the objectives, where completed.
    """

    key: str
    status: Status
    attempts: int
    attributes: Mapping[str, Any]
    error: str | None
    values: tuple[float, ...] | None
    started: datetime | None
    finished: datetime | None

    @property
    def over(self) -> bool:
        """Whether nothing more will be done about it."""
        return self.status in ("completed", "failed")


@dataclass(kw_only=True)
class Claim:
    """A run that this worker, and no other, has."""

    trial: Trial

    @property
    def attributes(self) -> dict[str, Any]:
        """What was written on the board about the run."""
        return self.trial.user_attrs

    @property
    def key(self) -> str:
        """The run's key."""
        return str(self.attributes["run"])


_MEASURED = "objectives"


class Board:
    """One Optuna study in a storage.

    Args:
        url: of the storage, as SQLAlchemy writes it. A SQLite file is made with its folder.
        name: of the Optuna study.
        objectives: names of what is measured, and the direction of each.
        retries: attempts beyond the first after a worker's death.
        heartbeat, grace: seconds, as ``HEARTBEAT`` and ``GRACE``.
        sampler: makes the sampler of the n-th trial; the default samples nothing.

    Raises:
        UserError: the storage cannot be opened, or holds a study of that name with other objectives.
    """

    def __init__(
        self,
        url: str,
        name: str,
        objectives: Mapping[str, str],
        *,
        retries: int,
        heartbeat: int = HEARTBEAT,
        grace: int = GRACE,
        sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ) -> None:
        self.name, self._sampler = name, sampler
        self._lock, options = _lock_and_options(url)

        def open_storage() -> optuna.storages.RDBStorage:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=options,
                heartbeat_interval=heartbeat,
                grace_period=grace,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(retries),
            )

        try:
            with self._lock, _no_warnings():
                self._storage = _with_patience(open_storage)
                self._study = self._create_or_load(list(objectives.values()))
                measured = self._study.user_attrs.get(_MEASURED)
                if measured is None:  # new, or of an earlier version
                    measured = list(objectives)
                    self._study.set_user_attr(_MEASURED, measured)
        except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            if isinstance(error, ImportError):
                cause += "; install the driver of this database"
            raise UserError(f"--storage: cannot open {_without_password(url)}: {cause}") from error
        directions = [direction.name.lower() for direction in self._study.directions]
        found = list(zip(measured, directions, strict=False))
        if found != list(objectives.items()):
            told = ", ".join(f"{what}: {direction}" for what, direction in found)
            raise UserError(
                f"--storage: the study {name} in {_without_password(url)} has other objectives ({told}); "
                "give the study another name"
            )

    def states(self) -> dict[str, RunState]:
        """Every run on the board by key, in the order in which they were put there."""
        trials: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            key = trial.user_attrs.get("run")
            if key is not None and trial.state is not TrialState.PRUNED:
                trials.setdefault(key, []).append(trial)
        return {key: _state(key, found) for key, found in trials.items()}

    def check(self, runs: Sequence[Mapping[str, Any]], there: Mapping[str, RunState]) -> None:
        """Hold runs, as :meth:`put` takes them, against those that are ``there``.

        Raises:
            UserError: a run of that key is there with another ``fingerprint``: the study file has changed.
        """
        for run in runs:
            state = there.get(run["run"])
            if state is not None and state.attributes.get("fingerprint") != run["fingerprint"]:
                raise UserError(
                    f"the study {self.name} has {run['run']} with another recipe: the study file or a recipe has "
                    "changed since it was begun; give another --out, or the study another name"
                )

    def put(self, runs: Sequence[Mapping[str, Any]], *, again: bool = False) -> None:
        """Put runs on the board that are not there; each mapping holds ``run``, the key, and what its worker must know.

        Args:
            again: also runs that failed.

        Raises:
            UserError: as :meth:`check`.
        """
        with self._lock:
            there = self.states()
            self.check(runs, there)
            for run in runs:
                state = there.get(run["run"])
                waits_for_nobody = state is not None and state.attributes.get("released")
                if state is None or waits_for_nobody or (again and state.status == "failed"):
                    self._study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=dict(run)))

    def claim(self) -> Claim | None:
        """Take the next waiting run, or None if there is none."""
        with self._lock:
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting:
                return None
            if self._sampler is not None:
                begun = len(self._study.get_trials(deepcopy=False)) - len(waiting)
                self._study.sampler = self._sampler(begun)
            with _no_warnings():
                trial = self._study.ask()
            self._storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("worker", worker_name())
        if "run" not in trial.user_attrs or self._has_an_elder(trial):
            # Another worker was faster: `ask` made a trial that nobody planned, or two workers had put the same run.
            self._study.tell(trial.number, state=TrialState.PRUNED)
            return self.claim()
        return Claim(trial=trial)

    def complete(self, claim: Claim, values: Sequence[float]) -> None:
        """Write a run's result; does nothing if it was taken away because no sign of life came."""
        self._end(claim, TrialState.COMPLETE, values)

    def fail(self, claim: Claim, error: str) -> None:
        """Write why a run failed. It is not repeated."""
        self._mark(claim, "error", error)
        self._end(claim, TrialState.FAIL)

    def release(self, claim: Claim) -> None:
        """Give a run back unfinished: it waits again, and that costs no retry."""
        attributes = {
            key: value for key, value in claim.attributes.items() if key not in ("worker", "released")
        }
        trial = claim.trial
        self._mark(claim, "released", True)
        if self._end(claim, TrialState.FAIL):
            self._study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=attributes,
                )
            )

    def reap(self) -> None:
        """Let runs of dead workers wait again, as often as ``retries`` allows."""
        with self._lock:
            with _no_warnings():
                optuna.storages.fail_stale_trials(self._study)
            callback = self._storage.get_heartbeat_stale_trial_callback()
            assert callback is not None
            for trial in self._study.get_trials(deepcopy=True, states=(TrialState.RUNNING,)):
                # A retried trial carries the dead worker's name until the next one has written its own.
                fresh = trial.datetime_start and datetime.now() - trial.datetime_start < _TO_SIGN
                dead = not fresh and known_dead(str(trial.user_attrs.get("worker", "")))
                if dead and self._close(trial._trial_id, TrialState.FAIL):
                    callback(self._study, trial)

    @contextlib.contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Give signs of life for a run as long as the context lasts."""
        stop = threading.Event()
        interval = self._storage.get_heartbeat_interval()

        def beat() -> None:
            while not stop.wait(interval):
                # A storage that cannot be reached for a while: the next beat may come through.
                with contextlib.suppress(optuna.exceptions.StorageInternalError, SQLAlchemyError):
                    self._storage.record_heartbeat(claim.trial._trial_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _create_or_load(self, directions: Sequence[str]) -> optuna.Study:
        with contextlib.suppress(DuplicatedStudyError):
            wanted = [optuna.study.StudyDirection[name.upper()] for name in directions]
            return optuna.create_study(storage=self._storage, study_name=self.name, directions=wanted)
        return optuna.load_study(storage=self._storage, study_name=self.name)

    def _has_an_elder(self, trial: Trial) -> bool:
        alive = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
        return any(
            other.number < trial.number and other.user_attrs.get("run") == trial.user_attrs["run"]
            for other in self._study.get_trials(deepcopy=False, states=alive)
        )

    def _mark(self, claim: Claim, key: str, value: Any) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            claim.trial.set_user_attr(key, value)

    def _end(self, claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with self._lock:
            return self._close(claim.trial._trial_id, state, values)

    def _close(self, trial: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial; False where another process was faster, as may be where no file locks the board."""
        with contextlib.suppress(UpdateFinishedTrialError):
            return self._storage.set_trial_state_values(trial, state, values)
        return False


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Optuna calls heartbeats experimental, and foreign to ask and tell; that is nothing to users of studies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed", category=UserWarning)
        yield


def _with_patience(make: Callable[[], optuna.storages.RDBStorage]) -> optuna.storages.RDBStorage:
    """Open a storage that others may be making at the same moment.

    Where a study begins on several machines at once, all find the database empty and make its tables: on a server,
    which no file locks, all but one fail, and find the tables there a moment later.
    """
    for attempt in range(1, _OPENINGS):
        try:
            return make()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            taken = isinstance(error, IntegrityError | ProgrammingError) or "exist" in str(error).lower()
            if not taken:
                raise
            time.sleep(_BETWEEN_OPENINGS * attempt)
    return make()


def _state(key: str, trials: list[FrozenTrial]) -> RunState:
    last = trials[-1]
    status: dict[TrialState, Status] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "completed",
        TrialState.FAIL: "failed",
    }
    begun = [t for t in trials if t.datetime_start is not None and not t.user_attrs.get("released")]
    error = None
    if last.state is TrialState.FAIL:
        told = last.user_attrs.get("error")
        error = str(told) if told else f"its worker died, {len(begun)} times in all"
    return RunState(
        key=key,
        status="waiting" if last.user_attrs.get("released") else status[last.state],
        attempts=len(begun),
        attributes={**last.user_attrs, "settings": {**last.user_attrs.get("settings", {}), **last.params}},
        error=error,
        values=tuple(last.values) if last.state is TrialState.COMPLETE and last.values else None,
        started=last.datetime_start,
        finished=last.datetime_complete,
    )


def sqlite_url(file: Path) -> str:
    """Storage in ``file``, escaped: in a URL ``?`` begins a query, and Optuna fills in what stands between ``{}``."""
    return URL.create("sqlite", database=str(file.absolute())).render_as_string()


def _lock_and_options(url: str) -> tuple[contextlib.AbstractContextManager[Any], dict[str, Any]]:
    """What keeps other workers from changing the board, and what the engine is made with.

    A server locks rows itself. SQLite ignores such locks, so that two workers could both see a run waiting and both
    take it: a file beside the database stands in for them.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(
            f"--storage: {url!r} is not a URL of a database; write sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    if parsed.get_backend_name() != "sqlite":
        return contextlib.nullcontext(), {"pool_pre_ping": True}
    if not parsed.database or parsed.database == ":memory:":
        raise UserError(
            f"--storage: {url} is in memory, where no other process sees it; write sqlite:///FILE"
        )
    import filelock

    file = Path(parsed.database)
    file.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(f"{file}.lock"), {"connect_args": {"timeout": 60}}


def _without_password(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)
