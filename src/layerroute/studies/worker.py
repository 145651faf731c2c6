"""One worker: takes runs from the board, one after another, and trains them as ``layerroute train`` would."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from layerroute.errors import UserError
from layerroute.recipe import as_given
from layerroute.records import read_record
from layerroute.studies.board import Board, Claim
from layerroute.studies.plan import PlannedRun, fingerprint
from layerroute.studies.session import Session
from layerroute.training.run import train_recipe
from layerroute.training.run_directory import RunDirectory
from layerroute.training.signals import Interrupted

LOGS = "logs"
_log = logging.getLogger(__name__)


def work(session: Session, *, pause: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run what waits until nothing is left; return how many runs this worker ended.

    Where all that is left is run by others, it waits: one of them may die, or a choice may bring more runs.

    Raises:
        KeyboardInterrupt: at SIGINT; the run in hand waits again, and its checkpoint is where it was.
    """
    ended = 0
    while True:
        session.advance()
        taken = session.claim()
        if taken is not None:
            ended += run_claim(session, *taken)
        elif session.over():
            # What ended last may have let an arm choose: only if nothing follows is this the end.
            session.advance()
            if session.over():
                return ended
        else:
            sleep(pause)


def run_claim(session: Session, board: Board, claim: Claim) -> bool:
    """Train a claim's runs and write the outcome on the board; False where it was given back."""
    with board.alive(claim):
        try:
            runs = session.runs_of(claim)
            results = [_run(session, run, claim.attributes) for run in runs]
            values = [fmean(column) for column in zip(*results, strict=True)]
        except _Busy as busy:
            # Another process still trains there: it was taken for dead, and is not. Let it finish.
            _log.warning("%s", busy)
            board.release(claim)
            time.sleep(5)
            return False
        except _Failed as failure:
            board.fail(claim, str(failure))
        except UserError as error:
            board.fail(claim, " ".join(str(error).split()))
        except KeyboardInterrupt:
            board.release(claim)
            raise
        except Exception as error:
            traceback.print_exc()
            board.fail(claim, f"{type(error).__name__}: {error}")
        else:
            board.complete(claim, values)
    return True


class _Failed(Exception):
    """The run's own record says why."""


class _Busy(Exception):
    """The run's folder is held by another process."""


def _run(session: Session, run: PlannedRun, attributes: dict[str, Any]) -> list[float]:
    """Train one run unless it is there, completed; return the values of the objectives."""
    plan, out = session.plan, session.out
    recipe = plan.recipe(run.variant, run.seed, run.settings, name=_arm_name(session, run, attributes))
    if not plan.sampled and fingerprint(recipe) != run.fingerprint:
        raise UserError(
            "this worker's study file, recipes or version differ from those with which the study was begun: give all "
            "machines the same"
        )
    folder = out / run.key
    try:
        with RunDirectory(folder).locked():
            pass
    except UserError as error:
        if folder.is_file():
            raise
        raise _Busy(str(error)) from None
    log = out / LOGS / f"{run.key.replace('/', '_')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        console = Console(file=file, highlight=False, markup=False, soft_wrap=True)
        code = train_recipe(
            recipe, out=folder, command=f"layerroute study {as_given(plan.study.file)}", console=console
        )
    if code in (130, 143):
        raise Interrupted(code - 128)
    record = read_record(folder)
    if code != 0:
        raise _Failed(str(record.get("error") or f"exit code {code}"))
    return [_value(record, key, folder) for key in plan.config.objectives]


def _arm_name(session: Session, run: PlannedRun, attributes: dict[str, Any]) -> str:
    """Each sampled point is an arm of its own in the report."""
    return Path(attributes["run"]).name if session.plan.sampled else run.variant


def _value(record: dict[str, Any], key: str, folder: Path) -> float:
    found: Any = record
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"objectives: the record of {folder.name} has no number at {key}")
    return float(found)
