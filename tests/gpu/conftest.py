"""Results as they come, in the file that ``GPU_TEST_RESULTS`` names; what passed with this code is not run again.

The file has one JSON object a line: first the code, then a test each.
"""

import json
import os
from pathlib import Path

import pytest

from layerroute.provenance import provenance

NAME = "GPU_TEST_RESULTS"


class Results:
    """Writes what becomes of each test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        source = provenance()
        head = {"revision": source["revision"], "dirty": source["dirty"]}
        lines = read(path)
        if source["dirty"] or lines[:1] != [head]:
            lines = [head]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if isinstance(report.longrepr, tuple):
            line["why"] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.longrepr is not None:
            line["why"] = str(report.longrepr)[-1500:]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, object]]:
    """The whole lines of a file of results; none if there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def pytest_configure(config: pytest.Config) -> None:
    # Of the processes of pytest-xdist, the one that has started the others hears of all results.
    if NAME in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(Path(os.environ[NAME])))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if NAME not in os.environ:
        return
    last = {line["test"]: line["outcome"] for line in read(Path(os.environ[NAME])) if "test" in line}
    done = [item for item in items if last.get(item.nodeid) == "passed"]
    if done and len(done) < len(items):  # pytest calls it a failure to be left with nothing
        items[:] = [item for item in items if item not in done]
        config.hook.pytest_deselected(items=done)
