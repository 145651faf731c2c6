"""Case ``calibrate``: from which share of skipped tokens sparse execution pays on this machine."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from layerroute.benchmark import hybrid, skipping
from layerroute.benchmark.case import Case, Comparison, Prepared
from layerroute.benchmark.options import percent, rows_and_tokens
from layerroute.benchmark.phases import MASKED, PHASES, SPARSE
from layerroute.errors import UserError
from layerroute.precision import choose_device

DESCRIPTION = """\
Time sparse against masked execution at small shares of skipped tokens (--model hybrid: of tokens on GDN), in prefill,
in decoding several rows at once and in training, and say from which share on sparse is the faster one: the values of
skip.profitability (--model hybrid: model.profitability) for this machine, by which execution: auto decides. Before
that, both must agree."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the case's own options."""
    # --model has another meaning here.
    skipping.add_arguments(parser, "1x512", (0.04, 0.08, 0.15, 0.3, 0.5, 0.7), ("--shape",))
    parser.add_argument(
        "--model",
        choices=("skipping", "hybrid"),
        default="skipping",
        help="skipping (default): thresholds of layer skipping; hybrid: of attention routing",
    )
    for option, default, what in (
        ("--decode-size", (4, 64), "rows and context in decoding (default: 4x64)"),
        ("--train-size", (1, 128), "default: 1x128"),
    ):
        parser.add_argument(option, type=rows_and_tokens, default=default, metavar="BxT", help=what)
    parser.add_argument(
        "--phases",
        nargs="+",
        choices=PHASES,
        default=list(PHASES),
        metavar="PHASE",
        help="prefill, decode or train (default: all three)",
    )
    # What else the two cases read, whose options this one has not.
    parser.set_defaults(hidden_size=256, context="full_context", peers=False, scoring=False)
    parser.set_defaults(new_tokens=4, cache="dynamic", compile=False)


def comparisons(arguments: argparse.Namespace) -> list[Comparison]:
    """One row for each phase and share."""
    ways = (arguments.shape, arguments.unit, arguments.kv, arguments.skip_path)
    if arguments.model == "hybrid" and ways != (skipping.SHAPE, "block", "project", "identity"):
        raise UserError(
            "--shape, --unit, --kv and --skip-path are for models that skip layers; leave them out here."
        )
    sizes = {"prefill": arguments.sizes, "decode": [arguments.decode_size], "train": [arguments.train_size]}
    return [
        replace(row, baseline=MASKED, prepare=partial(_two_arms, row.prepare))
        for phase in arguments.phases
        for row in _rows(phase, argparse.Namespace(**{**vars(arguments), "sizes": sizes[phase]}))
    ]


def _rows(phase: str, arguments: argparse.Namespace) -> Iterator[Comparison]:
    if arguments.model == "skipping":
        for row in skipping.comparisons(phase, arguments):
            yield replace(row, title=f"{phase} {row.title}", labels={**row.labels, "phase": phase})
        return
    for (rows, tokens), share in product(arguments.sizes, arguments.skip):
        labels = {"phase": phase, "model": "hybrid", "dtype": arguments.dtype}
        yield Comparison(
            title=f"{phase} {rows}x{tokens}, {percent(share)} on GDN",
            labels={"batch": rows, "time": tokens, "skip": share, **labels},
            baseline=MASKED,
            tokens=rows * (hybrid.NEW_TOKENS if phase == "decode" else tokens),
            device=choose_device(arguments.device),
            prepare=partial(hybrid.prepare, arguments, phase, rows, tokens, share),
        )


def _two_arms(prepare: Callable[[], Prepared]) -> Prepared:
    prepared = prepare()
    return Prepared(gate=prepared.gate, arms={name: prepared.arms[name] for name in (MASKED, SPARSE)})


def conclude(record: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """The share from which sparse execution pays, by phase, 1 where it never does; and that as configuration.

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
    section = "model" if record["rows"][0].get("model") == "hybrid" else "skip"
    values = [f"    {phase}: {value:g}" for phase, value in found.items()]
    return found, [f"{section}:", "  profitability:", *values]


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


CASES = {
    "calibrate": Case(
        description=DESCRIPTION, add_arguments=add_arguments, comparisons=comparisons, conclude=conclude
    )
}
