"""Bring the records of a GPU sitting into ``results/gpu/``, and renew what quotes them.

FOLDER is what ``run.sh`` wrote, or its archive. Records of another revision are refused: they would say of this code
what another one did.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layerroute.errors import UserError
from layerroute.integrity import replace_text
from scripts.gpu.packing import CODE
from scripts.gpu.phases import PHASES
from scripts.gpu.sitting import STEPS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "gpu"
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- from results/gpu: scripts/gpu/collect writes this -->", "<!-- end -->"
MACHINE = "machine.json"
_DRAWN = ("decode", "prefill")


def collect(folder: Path, results: Path = RESULTS) -> list[Path]:
    """Copy the records of a sitting to ``results/CARD/PHASE/``; what was measured there before gives way.

    Returns the files written.

    Raises:
        UserError: the folder holds no sitting, a rehearsal, or one of another revision.
    """
    machine = _json(folder / MACHINE)
    hardware = machine["hardware"]
    if hardware["accelerator"] is None:
        raise UserError(f"{folder} was not made on a GPU: a rehearsal shows nothing that is worth keeping")
    card = slug(hardware["accelerator"])
    written = []
    found = [phase for phase in PHASES if (folder / phase / STEPS).is_file()]
    if not found:
        raise UserError(f"{folder} holds no phase of a sitting")
    for phase in found:
        state = _json(folder / phase / STEPS)
        if state["dirty"]:
            raise UserError(f"{folder / phase} was made with changes that are not committed")
        check_revision(state["revision"], f"{folder / phase}")
        for record in records_of(folder / phase):
            if (revision := _json(record).get("revision", machine["revision"])) != machine["revision"]:
                raise UserError(
                    f"{record} is of revision {revision}, not of the sitting's {machine['revision']}"
                )
    for phase in found:
        target = results / card / phase
        for path in [folder / phase / STEPS, *records_of(folder / phase)]:
            inner = path.relative_to(folder / phase)
            # A run's folder becomes its record's name: one file is all that is kept of it.
            name = f"{inner.parts[0]}.json" if inner.name == "record.json" else inner.name
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(path.read_bytes())
            written.append(target / name)
        if (tests := folder / phase / "tests.jsonl").is_file():
            replace_text(target / "tests.json", json.dumps(summed(tests, machine), indent=2) + "\n")
            written.append(target / "tests.json")
    return written


def records_of(phase: Path) -> Iterator[Path]:
    """Records of a phase: those of its commands, and those of its runs."""
    yield from sorted(path for path in phase.glob("*.json") if path.name != STEPS)
    yield from sorted(phase.glob("*/record.json"))


def summed(results: Path, machine: dict[str, Any]) -> dict[str, Any]:
    """The tests of a sitting: how many, and which failed or were skipped, and why. The last result of each counts."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    last = {line["test"]: line for line in lines if "test" in line}  # the first tells of the code
    count = {
        name: sum(line["outcome"] == name for line in last.values())
        for name in ("passed", "failed", "skipped")
    }
    head = {key: machine[key] for key in ("revision", "versions", "hardware")}
    return {**head, **count, "not_passed": [line for line in last.values() if line["outcome"] != "passed"]}


def slug(card: str) -> str:
    """``NVIDIA H100 80GB HBM3`` → ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def check_revision(revision: str | None, what: str) -> None:
    """Refuse records whose code is not the code here; documents and results may differ.

    Raises:
        UserError: saying which revision they are of.
    """
    if revision is None:
        raise UserError(f"{what} does not say of which revision it is: run with --pack, or in a checkout")
    command = ["git", "-C", str(ROOT), "diff", "--quiet", revision, "--", *CODE]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise UserError(
            f"{what} is of revision {revision}, whose code is not the code here; check it out, or run anew"
        )


def renew(results: Path = RESULTS, page: Path = PAGE) -> list[Path]:
    """Write the part of the page that is made of the records, and draw their figures; returns the files."""
    figures = _draw(results)  # the page shows those that are there
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    replace_text(page, f"{before}{BEGIN}\n\n{shown(results)}\n{END}{after}")
    return [page, *figures]


def shown(results: Path = RESULTS) -> str:
    """What has run on which card, as Markdown: a table a card."""
    cards = sorted(path for path in results.glob("*") if path.is_dir()) if results.is_dir() else []
    if not cards:
        return "Nothing has run on a GPU yet.\n"
    return "\n".join(_card(card) for card in cards)


def _card(folder: Path) -> str:
    lines = []
    for phase in PHASES:
        state = _json(folder / phase / STEPS) if (folder / phase / STEPS).is_file() else {"steps": {}}
        if not state["steps"]:
            lines.append(f"| {phase} | | has not run | | |")
        for name, step in state["steps"].items():
            record = folder / phase / f"{name}.json"
            shown, told = name, [("", "")]
            if record.is_file():
                shown = f"[{name}](../results/gpu/{folder.name}/{phase}/{record.name})"
                told = list(_told(_json(record))) or told
            for what, result in told:
                lines.append(f"| {phase} | {shown} | {step['status']} | {what} | {result} |")
    if (PAGE.parent / "images" / f"gpu-{folder.name}.png").exists():
        lines += ["", f"![Speed-up against the share skipped](images/gpu-{folder.name}.png)"]
    title = next((_title(path) for path in sorted(folder.rglob("*.json")) if path.name != STEPS), folder.name)
    head = ["| phase | step | state | what | result |", "|---|---|---|---|---|"]
    return "\n".join([f"### {title}", "", *head, *lines, ""])


def _title(path: Path) -> str:
    record = _json(path)
    hardware, versions = record.get("hardware", {}), record.get("versions", {})
    driver = f", driver {hardware['driver']}" if "driver" in hardware else ""
    software = f"torch {versions.get('torch')}, revision {str(record['revision'])[:12]}"
    return f"{hardware.get('accelerator')}{driver}, {software}"


def _told(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a record says, in the last two cells of table rows."""
    if record.get("kind") == "benchmark":
        for row in record["rows"]:
            for name, arm in row["arms"].items():
                if name != row["baseline"]:
                    more = [
                        f"{arm[key]['median']:.0%} of the limit" for key in ("share_of_limit",) if key in arm
                    ]
                    more += [f"{arm[key]:.0%} of the peak" for key in ("share_of_peak",) if key in arm]
                    speed = f"{arm['speedup']['median']:.2f}× as fast as {row['baseline']}"
                    yield f"{row['title']}: {name}", ", ".join([speed, *more])
    elif record.get("kind") == "transfer":
        for row in record["rows"]:
            for name, arm in row["arms"].items():
                gap = arm["at_equal_cost"]
                told = "no verdict at equal cost"
                if gap is not None:
                    told = f"{gap['mean']:+.4f} nats ({gap['low']:+.4f} to {gap['high']:+.4f}) at equal FLOPs"
                yield f"{row['kind']}: routed less {name}", told
    elif "passed" in record:
        yield "", f"{record['passed']} passed, {record['failed']} failed, {record['skipped']} skipped"
    elif record.get("status") == "completed":
        metrics, timing = record["metrics"], record["timing"]
        yield "", f"loss {metrics['validation_loss']:.4f}, {timing['tokens_per_second']:,.0f} tokens/s"
    else:
        yield "", str(record.get("status", ""))


def _draw(results: Path) -> list[Path]:
    """A figure a card: speed-up by share, as `layerroute bench figure` draws it."""
    from layerroute.lab.report.speed import speed_figures

    files = []
    for card in sorted(results.glob("*")) if results.is_dir() else []:
        paths = [path for case in _DRAWN for path in sorted((card / "inference").glob(f"{case}-*.json"))]
        records = [record for record in map(_json, paths) if record["rows"] and record["finished"]]
        if records:
            files.append(PAGE.parent / "images" / f"gpu-{card.name}.png")
            speed_figures(records, files[-1])
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"there is no {path}: give the folder that run.sh wrote, or its archive") from None
    except ValueError:
        raise UserError(f"{path} is damaged: it is not JSON") from None


def main(words: Sequence[str] | None = None) -> int:
    """Collect and renew; 2 for what is refused."""
    parser = argparse.ArgumentParser(prog="scripts/gpu/collect", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what run.sh wrote, or its archive")
    arguments = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder
            if folder.is_file():
                folder = Path(scratch)
                with tarfile.open(arguments.folder) as tar:
                    tar.extractall(folder, filter="data")
            written = collect(folder)
        for path in [*written, *renew()]:
            print(path.relative_to(ROOT))
    except tarfile.TarError as error:
        print(f"collect: {arguments.folder} is no archive of a sitting: {error}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"collect: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
