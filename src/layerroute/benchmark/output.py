"""Benchmark records on disk and in the terminal."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def save(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all; folders are made."""
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    """One line for each arm of each row: time of a call, tokens per second, speed-up over the row's baseline."""
    console.print(machine_line(record), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("ms", "quartiles", "tokens/s", "speed-up", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in record["rows"]:
        table.add_row(row["title"])
        for name, arm in row["arms"].items():
            seconds, speedup = arm["seconds"], arm["speedup"]
            own = name != row["baseline"]
            table.add_row(
                f"  {name}",
                _number(seconds["median"] * 1e3),
                f"{_number(seconds['q1'] * 1e3)}-{_number(seconds['q3'] * 1e3)}",
                f"{arm['tokens_per_second']:,.0f}",
                f"{speedup['median']:.2f}x" if own else "1",
                f"{speedup['q1']:.2f}-{speedup['q3']:.2f}" if own else "",
            )
    console.print(table)
    deviations = [check["deviation"] for row in record["rows"] for check in row["gate"]]
    console.print(
        f"Speed-up: over {' and '.join(sorted({row['baseline'] for row in record['rows']}))}, pair by pair. "
        f"Equality gate passed: {len(deviations)} comparisons, largest deviation {max(deviations):.2g}.",
        soft_wrap=True,
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
