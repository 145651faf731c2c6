"""Benchmark records on disk and in the terminal."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from layerroute.integrity import replace_text


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all; folders are made."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def machine_line(record: dict[str, Any]) -> str:
    """What ran where, in one line."""
    hardware, versions = record["hardware"], record["versions"]
    device = hardware["accelerator"] if record["device"].startswith("cuda") else hardware["cpu"]
    load, unit = record["load"]["before"], "CPU seconds" if record["clock"] == "cpu" else "wall time"
    return (
        f"{record['case']} on {device}, {hardware['cores']} cores, {record['threads']} threads, "
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}; "
        f"{record['repeats']} rounds of {unit}, load before {'unknown' if load is None else load[0]}"
    )


def print_table(record: dict[str, Any], console: Console) -> None:
    """One line for each arm of each row: time of a call, tokens per second, speed-up over the row's baseline.

    Where the arms have been counted, also the share of the structural limit that is reached, executed FLOPs a token,
    the peak memory of a call and the bytes of keys and values; and a line for each row in which sparse does not pay.
    """
    console.print(machine_line(record), soft_wrap=True)
    arms = [arm for row in record["rows"] for arm in row["arms"].values()]
    facts = [one for one in _FACTS if any(one[0] in arm for arm in arms)]
    limited = any("share_of_limit" in arm for arm in arms)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=20)
    # Counted arms have more columns than a terminal; the quartiles of the times are in the record.
    headings = ["ms", *(["quartiles"] if not facts else []), "tokens/s", "speed-up", "quartiles"]
    headings += ["of limit"] * limited + [heading for _, heading, _ in facts]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in record["rows"]:
        table.add_row(row["title"])
        for name, arm in row["arms"].items():
            seconds, speedup = arm["seconds"], arm["speedup"]
            own = name != row["baseline"]
            cells = [
                _number(seconds["median"] * 1e3),
                *([] if facts else [f"{_number(seconds['q1'] * 1e3)}-{_number(seconds['q3'] * 1e3)}"]),
                f"{arm['tokens_per_second']:,.0f}",
                f"{speedup['median']:.2f}x" if own else "1",
                f"{speedup['q1']:.2f}-{speedup['q3']:.2f}" if own else "",
            ]
            if limited:
                limit = row.get("limit", {})
                others = (row["baseline"], limit.get("arm"), limit.get("whole"))
                known = "share_of_limit" in arm and name not in others
                cells.append(f"{arm['share_of_limit']['median']:.0%}" if known else "")
            cells += [
                _number(arm[key] / scale) if arm.get(key) is not None else "" for key, _, scale in facts
            ]
            table.add_row(f"  {name}", *cells)
    console.print(table)
    for row in record["rows"]:
        lost = _losses(row)
        if lost:
            console.print(f"{row['title']}: routing does not pay here; {' and '.join(lost)}.", soft_wrap=True)
    deviations = [check["deviation"] for row in record["rows"] for check in row["gate"]]
    console.print(
        f"Speed-up: over {' and '.join(sorted({row['baseline'] for row in record['rows']}))}, pair by pair. "
        f"Equality gate passed: {len(deviations)} comparisons, largest deviation {max(deviations):.2g}.",
        soft_wrap=True,
    )


def _losses(row: dict[str, Any]) -> list[str]:
    """Arms that do without routing, or without sparse execution, and are faster."""
    arms, baseline = row["arms"], row["baseline"]
    own = next((name for name in ("sparse compiled", "sparse", "routed", "lossless") if name in arms), None)
    if own is None:
        return []
    found = []
    for other in dict.fromkeys((baseline, "dense")):
        if other not in arms or other == own:
            continue
        # Against the baseline by pairs, as in the table; against dense, where that is another, by medians.
        ratio = arms[own]["speedup"]["median"]
        if other != baseline:
            ratio = arms[other]["seconds"]["median"] / arms[own]["seconds"]["median"]
        if ratio < 1.0:
            found.append(f"{own} is {ratio:.2f}x as fast as {other}")
    return found


# Fact of an arm, its heading, and what it is divided by
_FACTS = (
    ("share_of_peak", "% of peak", 1e-2),
    ("skipped", "% skipped", 1e-2),
    ("acceptance", "% accepted", 1e-2),
    ("executed_flops_per_token", "MFLOP/tok", 1e6),
    ("peak_bytes", "peak MB", 1e6),
    ("kv_bytes", "KV MB", 1e6),
)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
