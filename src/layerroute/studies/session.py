"""A study at work: its plan, its boards, and what follows once runs are over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from layerroute.errors import UserError
from layerroute.studies.board import GRACE, HEARTBEAT, Board, Claim, RunState, sqlite_url
from layerroute.studies.gate import Checked, Gate
from layerroute.studies.plan import SEARCH, Plan, PlannedRun, fingerprint
from layerroute.studies.sampling import draw, make_sampler

DATABASE = "study.db"


class Session:
    """Plan and boards of a study in one folder.

    A study whose points are planned has one board; a sampled one has a board for each arm, so that each arm gets the
    same number of trials.

    Args:
        out: folder of the study.
        storage: URL; default a SQLite file in ``out``.
        heartbeat, grace: seconds, see :class:`Board`.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        storage: str | None = None,
        *,
        heartbeat: int = HEARTBEAT,
        grace: int = GRACE,
    ) -> None:
        self.plan, self.out = plan, out
        self.storage = storage or sqlite_url(out / DATABASE)
        config, sweep = plan.config, plan.config.sweep
        make = partial(
            Board,
            self.storage,
            objectives=config.objectives,
            retries=config.retries,
            heartbeat=heartbeat,
            grace=grace,
        )
        if plan.sampled:
            assert sweep is not None
            self.boards = {
                name: make(f"{config.name}/{name}", sampler=partial(make_sampler, sweep))
                for name in plan.variants
            }
        else:
            self.boards = {"": make(config.name)}

    def begin(self, *, again: bool = False) -> None:
        """Put on the boards what is not there yet; ``again`` also what failed.

        A study may have grown since it was begun. One that is refused is left as it was.

        Raises:
            UserError: the boards hold other runs than the plan: the study file or a recipe has changed.
        """
        for board in self.boards.values():
            board.reap()
        there = self.states()
        self._check_planned(there)
        # A trial that is to be run again has no say before it is over.
        heard = {
            key: state
            for key, state in there.items()
            if not (again and state.status == "failed" and key.startswith(f"{SEARCH}/"))
        }
        entries = {
            name: self._samples(name) if name else [_entry(run) for run in self._due(heard)]
            for name in self.boards
        }
        for name, board in self.boards.items():
            board.check(entries[name], there)
        for name, board in self.boards.items():
            board.put(entries[name], again=again)

    def advance(self) -> None:
        """Put on the board what can be run by now, and let runs of dead workers wait again."""
        for board in self.boards.values():
            board.reap()
        if self.plan.config.tune is None:
            return
        states = self.states()
        new = [_entry(run) for run in self._due(states) if run.key not in states]
        if new:
            self.boards[""].put(new)

    def _due(self, states: Mapping[str, RunState]) -> list[PlannedRun]:
        """The runs that need not wait for others any more.

        These are the first ones, the trials of all arms once the gate is passed, and the runs whose settings have been
        chosen.
        """
        plan = self.plan
        due = plan.first_runs()
        if plan.config.tune is None:
            return due
        if plan.config.gate is not None:
            gate = self.gate(states)
            if gate is None or not gate.passed:
                return due
            due += [run for name in plan.variants if name not in plan.gated for run in plan.trial_runs(name)]
        for name in plan.variants:
            settings = self.chosen(name, states)
            if settings is not None:
                due += plan.final_runs(name, settings)
        return due

    def _check_planned(self, states: Mapping[str, RunState]) -> None:
        plan = self.plan
        advice = "give another --out, or the study another name"
        known = set(plan.keys())
        for key in states:
            if key not in known:
                raise UserError(
                    f"the study {plan.config.name} has {key}, which the study file does not ask for: it has changed "
                    f"since the study was begun; put back what it had, or {advice}"
                )
        for name in plan.variants:
            for run in plan.trial_runs(name) if self._reported(name, states) else ():
                if run.key not in states:
                    raise UserError(
                        f"the study {plan.config.name} has reported runs of {name}, and {run.key} had no part in their "
                        f"choice: tune has changed since; put back what it had, or {advice}"
                    )

    def _reported(self, variant: str, states: Mapping[str, RunState]) -> list[RunState]:
        return [states[key] for key in self.plan.final_keys(variant) if key in states]

    def states(self) -> dict[str, RunState]:
        """Every run on the boards by key."""
        return {key: state for board in self.boards.values() for key, state in board.states().items()}

    def chosen(self, variant: str, states: Mapping[str, RunState]) -> dict[str, Any] | None:
        """The settings that an arm's trials speak for; None before they are over, or where none of them completed.

        The mean of the first objective over the seeds of ``tune`` decides, and only settings count with which every
        seed completed; the first of equals wins. Once there are reported runs the choice is theirs, whatever a trial
        that is run again comes to.
        """
        tune = self.plan.config.tune
        assert tune is not None
        reported = self._reported(variant, states)
        if reported:
            return dict(reported[0].attributes["settings"])
        scores: dict[str, list[float]] = {}
        settings: dict[str, dict[str, Any]] = {}
        for run in self.plan.trial_runs(variant):
            state = states.get(run.key)
            if state is None or not state.over:
                return None
            point = {key: run.settings[key] for key in tune.grid}
            name = json.dumps(point, sort_keys=True)
            settings[name] = point
            if state.values is not None:
                scores.setdefault(name, []).append(state.values[0])
        complete = {name: fmean(values) for name, values in scores.items() if len(values) == len(tune.seeds)}
        if not complete:
            return None
        sign = 1 if next(iter(self.plan.config.objectives.values())) == "minimize" else -1
        return settings[min(complete, key=lambda name: sign * complete[name])]

    def gate(self, states: Mapping[str, RunState]) -> Gate | None:
        """The gate by what the trials of its arms came to; None without one, or before they are over."""
        config, tune = self.plan.config.gate, self.plan.config.tune
        if config is None:
            return None
        assert tune is not None
        at = list(self.plan.config.objectives).index(config.metric)
        reached: dict[str, float | None] = {}
        for name in self.plan.gated:
            trials = self.plan.trial_runs(name)
            settings = self.chosen(name, states)
            if settings is None and not all(run.key in states and states[run.key].over for run in trials):
                return None
            chosen = [
                run for run in trials if settings is not None and settings.items() <= run.settings.items()
            ]
            values = [found[at] for run in chosen if (found := states[run.key].values) is not None]
            reached[name] = fmean(values) if values else None
        checked = [Checked(condition=one, value=reached[one.arm]) for one in config.conditions]
        return Gate(config=config, conditions=checked)

    def claim(self) -> tuple[Board, Claim] | None:
        """Take the next run, arms in turn."""
        for board in sorted(self.boards.values(), key=_begun):
            claim = board.claim()
            if claim is not None:
                return board, claim
        return None

    def over(self) -> bool:
        """Whether nothing waits, runs, or will follow."""
        return all(state.over for state in self.states().values())

    def runs_of(self, claim: Claim) -> list[PlannedRun]:
        """What a claim means: one run, or one for each seed of a sampled point."""
        known = {name: claim.attributes[name] for name in ("variant", "fingerprint")}
        if not self.plan.sampled:
            own = {name: claim.attributes[name] for name in ("seed", "settings")}
            return [PlannedRun(key=claim.key, **known, **own)]
        sweep = self.plan.config.sweep
        assert sweep is not None
        settings = draw(claim.trial, sweep.keys)
        return [
            PlannedRun(key=f"{claim.key}-seed{seed}", **known, seed=seed, settings=settings)
            for seed in self.plan.config.seeds
        ]

    def _samples(self, variant: str) -> list[dict[str, Any]]:
        sweep = self.plan.config.sweep
        assert sweep is not None
        own = fingerprint(self.plan.recipe(variant, self.plan.config.seeds[0], {}))
        # More trials of the same sweep are no other study.
        drawn = {key: value for key, value in asdict(sweep).items() if key != "trials"}
        plan = [own, self.plan.config.seeds, drawn]
        mark = hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()
        return [
            {"run": key, "variant": variant, "fingerprint": mark} for key in self.plan.final_keys(variant)
        ]


def _entry(run: PlannedRun) -> dict[str, Any]:
    content = asdict(run)
    return {"run": content.pop("key"), **content}


def _begun(board: Board) -> int:
    return sum(state.status != "waiting" for state in board.states().values())
