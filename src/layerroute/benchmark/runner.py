"""Run a case: gate, then paired timing, row by row, into one record."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from layerroute.benchmark.case import Check, Comparison, Facts, Prepared
from layerroute.benchmark.timing import Timings, measure, peak_flops
from layerroute.records import SCHEMA_VERSION, provenance, utc_now

Record = dict[str, Any]

BUSY = 0.5
"""Load average of the last minute above which the machine is other people's."""
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    # CPU seconds of this process over all its threads: what other processes do hardly shows, nor do idle threads.
    "cpu": time.process_time,
}


def run_comparisons(
    case: str,
    comparisons: Sequence[Comparison],
    *,
    repeats: int,
    clock: str = "wall",
    command: str,
    on_row: Callable[[Comparison, str], None] = lambda comparison, stage: None,
    kept: Mapping[str, Record] | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Gate and time every comparison.

    Args:
        comparisons: its rows, at least one.
        repeats: rounds of paired measurement.
        clock: a key of ``CLOCKS``.
        on_row: told of each row's stages: ``prepare``, ``gate``, ``time``, ``done``.
        kept: rows by title that were measured before: they are not measured again.
        on_record: given the record after each row but the last; its ``finished`` is None as long as rows are missing.

    Returns:
        The record. ``load`` holds the 1, 5 and 15 minute load averages of the machine ``before`` and ``after`` (null
        where the system has none): what is above 0 *before* is other people's work, and makes noise. A row has
        ``title``, its labels, ``tokens``, ``baseline``, ``gate`` (a list of ``what``, ``deviation`` and ``tolerance``)
        and ``arms``. An arm has ``seconds`` (median, quartiles, extremes of a call), ``tokens_per_second`` (at the
        median), ``speedup`` over the baseline (the same statistics, over the rounds' pairs), ``calls`` per number, and
        its facts; where the row has a structural limit, also ``share_of_limit``; where the FLOPs needed are known,
        ``share_of_peak``, and the row ``peak_flops_per_second``.

    Raises:
        RedGate: arms that should be equal are not; it names the largest deviation.
    """
    kept = kept or {}
    record: Record = {
        "schema": SCHEMA_VERSION,
        "kind": "benchmark",
        "case": case,
        "command": command,
        "started": utc_now(),
        "finished": None,
        "repeats": repeats,
        "clock": clock,
        "device": str(comparisons[0].device),
        "threads": torch.get_num_threads(),
        "load": {"before": _load()},
        **provenance(),
        "rows": [],
    }
    for comparison in comparisons:
        row = kept.get(comparison.title) or _measure(comparison, repeats, clock, on_row)
        record["rows"].append(row)
        on_row(comparison, "done")
        if len(record["rows"]) < len(comparisons):
            on_record(record)
    record["load"]["after"] = _load()
    record["finished"] = utc_now()
    return record


def same_rows(record: Record, command: str, source: Mapping[str, Any]) -> dict[str, Record]:
    """Rows by title of an earlier record that this command would measure again alike.

    Args:
        record: of a run that may have been cut off.
        command: must be the record's.
        source: of the code and machine now, as ``provenance`` tells it: clean, and the same. The threads, too, must be
            as many as now.
    """
    now = {key: source[key] for key in ("versions", "revision", "dirty", "hardware")}
    now |= {"command": command, "threads": torch.get_num_threads()}
    same = all(record.get(key) == value for key, value in now.items())
    return {row["title"]: row for row in record["rows"]} if same and not source["dirty"] else {}


def _measure(
    comparison: Comparison, repeats: int, clock: str, on_row: Callable[[Comparison, str], None]
) -> Record:
    on_row(comparison, "prepare")
    prepared = comparison.prepare()
    on_row(comparison, "gate")
    checks = prepared.checked(comparison.title)
    counted = prepared.count()
    on_row(comparison, "time")
    device = comparison.device
    timings = measure(
        prepared.arms,
        repeats=repeats,
        synchronize=partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None,
        clock=CLOCKS[clock],
        pace=CLOCKS["wall"],
    )
    return _row(comparison, prepared, checks, timings, counted)


def _row(
    comparison: Comparison, prepared: Prepared, checks: Sequence[Check], timings: Timings, counted: Facts
) -> Record:
    limit, baseline = prepared.limit, comparison.baseline
    tokens = comparison.tokens if prepared.tokens is None else prepared.tokens()
    row: Record = {
        "title": comparison.title,
        **comparison.labels,
        "tokens": tokens,
        "baseline": baseline,
        "gate": [asdict(check) for check in checks],
        "arms": {
            name: {
                **counted.get(name, {}),
                "seconds": timings.spread(name).to_dict(),
                "tokens_per_second": tokens / timings.spread(name).median,
                "speedup": timings.speedup(name, baseline).to_dict(),
                "calls": timings.calls[name],
            }
            for name in prepared.arms
        },
    }
    if prepared.needed:
        row["peak_flops_per_second"] = peak = peak_flops(comparison.device, prepared.dtype)
        for name, needed in prepared.needed.items():
            row["arms"][name]["share_of_peak"] = needed / timings.spread(name).median / peak
    if limit is not None:
        whole = limit.whole or baseline
        for name, arm in row["arms"].items():
            share = timings.share_of(name, whole, limit.arm, limit.factor)
            arm["share_of_limit"] = share.to_dict()
        row["limit"] = {**asdict(limit), "whole": whole}
    return row


def is_busy() -> bool:
    """Whether others use the machine: what is timed then is noisy, and its record says so."""
    load = _load()
    return load is not None and load[0] > BUSY


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None
