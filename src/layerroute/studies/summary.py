"""What a study came to: ``study.json``, beside the records of its runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from layerroute.integrity import replace_text
from layerroute.lab.statistics import pareto_front
from layerroute.studies.board import RunState
from layerroute.studies.session import Session

FILE = "study.json"


def summarize(session: Session) -> dict[str, Any]:
    """The study as plain data: every run with its state, attempts and error, what each arm chose, and the front."""
    plan, config, states = session.plan, session.plan.config, session.states()
    chosen = {}
    gate = session.gate(states)
    if config.tune is not None:
        stopped = gate is not None and not gate.passed
        chosen = {name: session.chosen(name, states) for name in (plan.gated if stopped else plan.variants)}
    counts = Counter(state.status for state in states.values())
    return {
        "study": config.name,
        "file": str(plan.study.file),
        "objectives": dict(config.objectives),
        "counts": {status: counts[status] for status in ("completed", "failed", "running", "waiting")},
        "retried": sum(max(0, state.attempts - 1) for state in states.values()),
        "chosen": chosen,
        **({} if config.gate is None else {"gate": None if gate is None else gate.to_dict()}),
        "at_the_edge": _at_the_edge(session, chosen),
        "front": _front(states, config.objectives),
        "runs": [_run(state, config.objectives) for state in states.values()],
    }


def write_summary(session: Session) -> dict[str, Any]:
    """Write ``study.json`` whole; return what it holds."""
    content = summarize(session)
    replace_text(session.out / FILE, json.dumps(content, indent=2) + "\n")
    return content


def _run(state: RunState, objectives: Mapping[str, str]) -> dict[str, Any]:
    return {
        "run": state.key,
        "arm": state.attributes.get("variant"),
        "status": state.status,
        "attempts": state.attempts,
        "error": state.error,
        "settings": state.attributes.get("settings"),
        "values": None if state.values is None else dict(zip(objectives, state.values, strict=True)),
    }


def _front(states: Mapping[str, RunState], objectives: Mapping[str, str]) -> list[str]:
    """Keys of the reported runs, or sampled points, that no other one beats in everything."""
    scored = {
        key: state.values
        for key, state in states.items()
        if state.values is not None and not key.startswith("search/")
    }
    signs = [1.0 if direction == "minimize" else -1.0 for direction in objectives.values()]
    points = {key: tuple(s * v for s, v in zip(signs, values, strict=True)) for key, values in scored.items()}
    return pareto_front(points)


def _at_the_edge(session: Session, chosen: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Arms whose choice is the first or last number of a grid: a wider grid may serve them better."""
    tune = session.plan.config.tune
    if tune is None:
        return []
    found = []
    for name, settings in chosen.items():
        for key, values in tune.grid.items():
            numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            if settings and len(numbers) == len(values) > 2 and settings[key] in (min(numbers), max(numbers)):
                found.append(f"{name}: {key} {settings[key]:g}")
    return found
