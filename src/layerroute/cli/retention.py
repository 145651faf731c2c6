"""``layerroute retention RUN ...``: what routed models keep of the base, and the first against the others."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from layerroute.argument_types import at_least
from layerroute.cli.arguments import (
    add_device,
    add_json,
    add_serve,
    add_tasks,
    add_text_field,
    add_window_sizes,
)
from layerroute.cli.output import command_line, folder, make_console, print_json, write_csv, write_json
from layerroute.errors import UserError

DESCRIPTION = """\
Score a base model and layer-skipping runs on it on the same documents: perplexity of text, tasks of
lm-evaluation-harness (last-word accuracy, multiple choice), and tell what each run retains of the base's scores, with
paired intervals, and how the first run stands against the others. Runs are scored as they are served: sparse, with
their routers on."""
EPILOG = """\
example:
  layerroute retention runs/token-seed1 runs/static_greedy-seed1 runs/random-seed1 \\
      --tasks lambada.jsonl arc_easy.jsonl piqa.jsonl --data 'prose/valid.jsonl.xz' --limit 300 --out retention

Scores are kept in DIR/scores, so that a run which is added later costs only its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, tasks and text."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="layer-skipping runs, or router folders"
    )
    add_tasks(
        parser,
        "names that the harness knows, or JSON Lines files (context, target; question, choices, gold; prompt, answer)",
    )
    parser.add_argument("--data", nargs="+", metavar="FILE", default=[], help="text for perplexity")
    add_text_field(parser)
    parser.add_argument(
        "--windows", type=at_least(1), default=64, metavar="N", help="windows of text (default: 64)"
    )
    add_window_sizes(parser)
    parser.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        help="write retention.json, retention.csv, retention.md and the scores",
    )
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp32"],
        help="of all matrix products (default: that of each run's training, fp32 for a router that was calibrated)",
    )
    add_serve(parser)
    parser.add_argument(
        "--equal-flops",
        action="store_true",
        help="also score the first run where it executes the FLOPs of each other one, task by task: it holds its rate, "
        "and is asked for another",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score what is not scored yet, compare, print and write."""
    for name in ("limit", "shots"):
        if getattr(arguments, name) is not None and not arguments.tasks:
            raise UserError(f"--{name} is for --tasks; leave it out")
    if arguments.equal_flops and len(arguments.runs) == 1:
        raise UserError("--equal-flops serves the first run at the FLOPs of others: name one or more, too")
    from layerroute.evaluation.retention import BASE, Scorer, base_of
    from layerroute.lab.retention import retention

    labels = _labels(arguments.runs, BASE)
    console = make_console(stderr=True)
    bases = {base_of(path) for path in arguments.runs}
    if len(bases) > 1:
        raise UserError(
            f"the runs have {len(bases)} base models ({', '.join(sorted(bases))}): compare them apart"
        )
    scorer = Scorer(
        arguments.tasks,
        text=arguments.data,
        text_field=arguments.text_field,
        limit=arguments.limit,
        windows=arguments.windows,
        length=arguments.sequence_length,
        batch_size=arguments.batch_size,
        shots=arguments.shots,
        device=arguments.device,
        precision=arguments.precision,
        serve=arguments.serve,
        folder=None if arguments.out is None else arguments.out / "scores",
        tell=console.print,
    )
    precisions = {scorer.precision_of(path) for path in arguments.runs}
    if len(precisions) > 1:
        raise UserError(
            "the runs were trained in bf16 and in fp32: say in which all are scored with --precision"
        )
    if arguments.equal_flops:
        scorer.check_rate(arguments.runs[0])
    base = scorer.base(bases.pop(), precisions.pop())
    models = [scorer.routed(label, path) for label, path in zip(labels, arguments.runs, strict=True)]
    at_cost = [
        scorer.at_cost_of(other, path, labels[0], arguments.runs[0])
        for other, path in list(zip(labels, arguments.runs, strict=True))[1:]
        if arguments.equal_flops
    ]
    found = retention(base, models, dict(zip(labels[1:], at_cost, strict=False)))
    if arguments.out is not None:
        _write(arguments.out, found)
    if arguments.json:
        print_json(found.to_dict())
        return 0
    from layerroute.lab.report.terminal import print_table, print_transposed

    out = make_console()
    print_transposed(found.table, out)
    if found.against_others:
        print_table(found.differences, out)
    return 0


def _labels(runs: list[Path], base: str) -> list[str]:
    """The folders' names; where two are alike, or one is called as the ``base`` is, with their parents' names."""
    names = [path.resolve().name for path in runs]
    names = [
        path.resolve().parent.name if name in ("best", "last") else name
        for name, path in zip(names, runs, strict=True)
    ]
    if len({*names, base}) <= len(names):
        names = ["/".join(path.resolve().parts[-2:]) for path in runs]
    if len(set(names)) < len(names):
        raise UserError("a run is named twice")
    return names


def _write(folder: Path, found: Any) -> None:
    from layerroute.provenance import provenance

    content = {"command": command_line("retention"), **provenance(), **found.to_dict()}
    write_json(folder / "retention.json", content)
    tables = [found.table, *([found.differences] if found.against_others else [])]
    text = "\n\n".join(table.to_markdown() for table in tables)
    (folder / "retention.md").write_text(text + "\n", encoding="utf-8")
    rows = [asdict(change) for change in (*found.kept, *found.against_others)]
    write_csv(folder / "retention.csv", [rows[0], *(row.values() for row in rows)])
