"""Results as they come: one JSON object a test, in the file that ``GPU_TEST_RESULTS`` names."""

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = os.environ.get("GPU_TEST_RESULTS")
    if (
        path is None or "PYTEST_XDIST_WORKER" in os.environ
    ):  # the process that started the workers hears of all
        return
    if report.when != "call" and report.outcome == "passed":
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if isinstance(report.longrepr, tuple):
        line["why"] = report.longrepr[2].removeprefix("Skipped: ")
    elif report.longrepr is not None:
        line["why"] = str(report.longrepr)[-1500:]
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
