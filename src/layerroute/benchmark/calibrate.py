"""Case ``calibrate``: from which share of skipped tokens sparse execution pays on this machine."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from layerroute.benchmark import decode, hybrid_phases, prefill, skipping, train_skipping
from layerroute.benchmark.case import Comparison, Prepared
from layerroute.benchmark.skipping import MASKED, SPARSE

DESCRIPTION = """\
Time sparse against masked execution at small shares of skipped tokens (--model hybrid: of tokens on GDN), in prefill,
in decoding several rows at once and in training, and say from which share on sparse is the faster one: the values of
skip.profitability (--model hybrid: model.profitability) for this machine, by which execution: auto decides. Before
that, both must agree."""

PHASES = ("prefill", "decode", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    skipping.add_arguments(parser, "1x512")
    parser.set_defaults(skip=[0.04, 0.08, 0.15, 0.3, 0.5, 0.7])
    parser.add_argument(
        "--model",
        choices=("skipping", "hybrid"),
        default="skipping",
        help="whose thresholds: layer skipping (default), or attention routing",
    )
    parser.add_argument(
        "--decode-size", default="4x64", metavar="BxT", help="rows and context (default: 4x64)"
    )
    parser.add_argument("--train-size", default="1x128", metavar="BxT", help="default: 1x128")
    parser.add_argument(
        "--phases",
        nargs="+",
        choices=PHASES,
        default=list(PHASES),
        metavar="PHASE",
        help="default: all three",
    )


def comparisons(arguments: argparse.Namespace) -> Sequence[Comparison]:
    """One row for each phase and share."""
    if arguments.model == "hybrid":
        return list(hybrid_phases.comparisons(arguments))
    of_phase: dict[str, Any] = {
        "prefill": (prefill, {"scoring": False}),
        "decode": (decode, {"sizes": [arguments.decode_size], "new_tokens": 4, "cache": "dynamic"}),
        "train": (train_skipping, {"sizes": [arguments.train_size]}),
    }
    rows = []
    for phase in arguments.phases:
        case, changes = of_phase[phase]
        options = argparse.Namespace(**{**vars(arguments), **changes})
        for row in case.comparisons(options):
            rows.append(
                replace(
                    row,
                    title=f"{phase} {row.title}",
                    labels={**row.labels, "phase": phase},
                    baseline=MASKED,
                    prepare=partial(_two_arms, row),
                )
            )
    return rows


def _two_arms(row: Comparison) -> Prepared:
    prepared = row.prepare()
    arms = {name: prepared.arms[name] for name in (MASKED, SPARSE)}
    return Prepared(gate=prepared.gate, arms=arms)


def conclude(record: Mapping[str, Any]) -> dict[str, float]:
    """The share from which sparse execution pays, by phase; 1 where it never does.

    Above it sparse was the faster at every share measured; between the last share that lost and the first that won the
    speed-up is taken to be linear.
    """
    found: dict[str, float] = {}
    for phase in PHASES:
        points = sorted(
            (float(row["skip"]), float(row["arms"][SPARSE]["speedup"]["median"]))
            for row in record["rows"]
            if row["phase"] == phase
        )
        if points:
            found[phase] = round(_crossing(points), 3)
    return found


def _crossing(points: Sequence[tuple[float, float]]) -> float:
    threshold = 1.0
    for index in reversed(range(len(points))):
        share, speedup = points[index]
        if speedup >= 1.0:
            threshold = share
            continue
        if index + 1 < len(points):
            above, faster = points[index + 1]
            threshold = share + (above - share) * (1.0 - speedup) / (faster - speedup)
        break
    return threshold


def conclusion_lines(record: Mapping[str, Any]) -> list[str]:
    """The conclusion as a user's configuration has it."""
    section = "model" if record["rows"][0].get("model") == "hybrid" else "skip"
    values = [f"    {phase}: {value:g}" for phase, value in record["conclusion"].items()]
    return [f"{section}:", "  profitability:", *values]
