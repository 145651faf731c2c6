"""``layerroute evaluate CHECKPOINT --tasks ...``: scores of lm-evaluation-harness, with the routing that was served."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from layerroute.cli.evaluate_engine import opener
from layerroute.cli.output import print_json, write_csv, write_json
from layerroute.errors import UserError, nearest


def evaluate_tasks(arguments: argparse.Namespace) -> int:
    """Score, print, and write ``results.json`` and one CSV of samples a task where ``--out`` says so."""
    from layerroute.evaluation.harness import run_tasks, score_tasks
    from layerroute.evaluation.task_list import expand, make_tasks

    batch_size = arguments.batch_size or 8
    open_engine = opener(arguments, batch_size) if arguments.engine == "vllm" else None
    wanted = expand(arguments.tasks, arguments.shots)
    tasks = make_tasks([one.task for one in wanted])
    _check_names([task for task in tasks if isinstance(task, str)])
    shots = [one.shots for one in wanted]
    if open_engine is not None:
        found = score_tasks(open_engine, tasks, limit=arguments.limit, shots=shots)
    else:
        found = run_tasks(
            arguments.checkpoint,
            tasks,
            batch_size=batch_size,
            limit=arguments.limit,
            shots=shots,
            full_depth=arguments.full_depth,
            budget=arguments.budget,
            serve=arguments.serve,
            execution=arguments.execution,
            device=None if arguments.device == "auto" else arguments.device,
        )
    samples = found.pop("samples")
    found = {"checkpoint": arguments.checkpoint, **found}
    if arguments.out is not None:
        write_json(arguments.out / "results.json", found)
        for name, rows in samples.items():
            _write_samples(arguments.out / f"{name.replace('/', '_')}.csv", rows)
    if arguments.json:
        print_json(found)
        return 0
    _print(found)
    return 0


def _check_names(names: list[str]) -> None:
    if not names:
        return
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    for name in names:
        if name not in known:
            raise UserError(f"--tasks: the harness knows no task {name!r}.{nearest(name, known)}")


def _write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line a document: its number, what was right, the model's answer, and the metrics."""
    metrics = sorted({name for row in rows for name in row.get("metrics", [])})
    lines: list[list[Any]] = [["document", "target", "responses", *metrics]]
    for row in rows:
        responses = json.dumps(row.get("filtered_resps"), ensure_ascii=False)
        lines.append([row["doc_id"], row["target"], responses, *(_plain(row.get(m)) for m in metrics)])
    write_csv(path, lines)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _print(found: dict[str, Any]) -> None:
    print(f"{found['checkpoint']}{' at full depth' if found['full_depth'] else ''}")
    for name, metrics in found["tasks"].items():
        shown = [
            f"{metric} {value:.4f}"
            + (f" ± {metrics[error]:.4f}" if (error := f"{metric}_stderr") in metrics else "")
            for metric, value in metrics.items()
            if not metric.endswith("_stderr")
        ]
        print(f"{name:<24} {', '.join(shown)}  ({found['n_samples'].get(name, 0)} documents)")
    routing = found["routing"]
    if routing is None:
        return
    expensive = routing["paths"][-1]
    print(f"{expensive} {routing['mean_rate']:.1%} of decisions over {routing['tokens']:,} tokens")
    for site, rate in routing["rate"].items():
        print(f"  {site:<22} {rate:.1%}")
    if routing["executed_share"] is not None:
        print(
            f"computed: {routing['executed_share']:.1%} of tokens × routed layers ({found['execution']} execution)"
        )
