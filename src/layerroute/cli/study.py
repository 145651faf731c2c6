"""``layerroute study STUDY``: arms × seeds or a sweep, on any number of workers, then the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from layerroute.cli.output import folder, make_console, print_json
from layerroute.errors import UserError

ACCEPTS_OVERRIDES = True

DESCRIPTION = """\
Run a study: every arm with every seed, or a sweep, each run as `layerroute train` would run it. Runs are shared by the
workers here, and by those of every machine where the same command is given with the same --storage. Finished runs are
skipped, runs of dead workers are tried again from their newest checkpoint, failures are told and kept. Ends with the
report. A study with a gate runs the trials of the arms that the gate names first, and stops there if their task
cannot tell arms apart."""
EPILOG = """\
examples:
  layerroute study recipes/attention_routing/recall.yaml --workers 2
  layerroute study study.yaml --train.max_steps 50 --out studies/quick
  layerroute study study.yaml --storage postgresql://me@host/studies --out /shared/study

Any recipe key that the study does not vary can be set in all runs, over what it says: --train.max_steps 50.
Exit codes: 0 all runs completed, 1 some failed or the gate is not passed (study.json says which, and why), 2 bad input,
130 interrupted by Ctrl-C, 143 by SIGTERM; the same command then goes on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Study, workers, storage and folder; dotted overrides are taken by the frame."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("study", metavar="STUDY", help="a study's YAML file, or the name of a shipped study")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes here (default: 1)")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="Optuna storage shared by all workers, such as postgresql://USER@HOST/NAME (default: a SQLite file in the "
        "study's folder)",
    )
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the study (default: studies/NAME)"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed before")
    parser.add_argument("--plan", action="store_true", help="print the runs and do nothing")
    parser.add_argument("--json", action="store_true", help="print what came of it (study.json) on stdout")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run the study; returns the exit code."""
    if arguments.workers < 1:
        raise UserError(f"--workers is {arguments.workers}; it must be 1 or more")
    from layerroute.studies.configuration import load_study
    from layerroute.studies.plan import Plan
    from layerroute.studies.session import Session

    study = load_study(arguments.study, arguments.overrides)
    plan = Plan(study)
    out = arguments.out or Path("studies") / study.config.name
    if arguments.plan:
        return _print_plan(plan)
    session = Session(plan, out, arguments.storage)
    if arguments.as_worker:
        from layerroute.studies.coordinator import serve
        from layerroute.studies.worker import work

        return serve(session, work)
    session.begin(again=arguments.retry_failed)
    return _coordinate(session, arguments)


def _coordinate(session: Any, arguments: argparse.Namespace) -> int:
    from layerroute.studies.coordinator import WorkersFailed, run_workers
    from layerroute.studies.summary import write_summary

    console = make_console(stderr=True)
    command = [sys.executable, "-m", "layerroute", "study", arguments.study, "--as-worker"]
    command += ["--out", str(session.out), "--storage", session.storage]
    for key, value in arguments.overrides.items():
        command.append(f"--{key}={value}")
    try:
        code = run_workers(session, command, workers=arguments.workers, console=console)
    except WorkersFailed as error:
        print(f"layerroute: {error}", file=sys.stderr)
        code = 1
    summary = write_summary(session)
    if code == 0:
        code = _report(session, summary, console)
    elif code in (130, 143):
        print("Interrupted. The same command goes on.", file=sys.stderr)
    if arguments.json:
        print_json(summary)
    return code


def _report(session: Any, summary: dict[str, Any], console: Any) -> int:
    """Tell what failed, write the report, and return the exit code."""
    from layerroute.lab.report.build import build_report

    for run in summary["runs"]:
        if run["status"] == "failed":
            print(f"layerroute: failed: {run['run']}: {run['error']}", file=sys.stderr)
    for name, settings in summary["chosen"].items():
        if settings is None:
            print(f"layerroute: {name} was not run: none of its trials completed", file=sys.stderr)
    for edge in summary["at_the_edge"]:
        console.print(f"chosen at the edge of the grid: {edge}; a wider grid may serve it better")
    failed = summary["counts"]["failed"] > 0 or None in summary["chosen"].values()
    gate = summary.get("gate")
    if gate is not None:
        print(f"layerroute: {gate['verdict']}", file=sys.stderr)
        if not gate["passed"]:
            return 1
    if summary["counts"]["completed"] == 0:
        return 1
    try:
        page, comparison = build_report(session.out)
    except UserError as error:
        print(f"layerroute: the runs are done, but there is no report: {error}", file=sys.stderr)
        return 1
    console.print(comparison.verdict)
    console.print(f"Report: {page}")
    return 1 if failed else 0


def _print_plan(plan: Any) -> int:
    for run in plan.first_runs():
        settings = " ".join(f"{key}={value}" for key, value in run.settings.items())
        print(f"{run.key}  {settings}".rstrip())
    if plan.sampled:
        sweep = plan.config.sweep
        print(f"{sweep.trials} trials of {len(plan.config.seeds)} runs in each of {', '.join(plan.variants)}")
    elif plan.config.tune is not None:
        if plan.gated:
            print("then, if the gate is passed, the trials of the other arms")
        seeds = ", ".join(map(str, plan.config.seeds))
        for name in plan.variants:
            print(f"runs/{name}-seed{{{seeds}}}  with what its trials choose")
    return 0
