"""Figures are drawn by several processes where that is safe; what comes of it is the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from layerroute.lab.report.cores import on_all_cores
from tests.unit.lab.record_factory import sample_study

FORKS = """
import json, os, sys, threading
os.sched_getaffinity = lambda process: {0, 1}
from layerroute.lab.report.cores import on_all_cores
if sys.argv[1] == "thread":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
if sys.argv[1] == "torch":
    sys.modules["torch"] = sys
here = []
found = list(on_all_cores(lambda number: (here.append(number), number * number, os.getpid())[1:], 6))
print(json.dumps([[square for square, _ in found], os.getpid() in {process for _, process in found}, here]))
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
@pytest.mark.parametrize(("beside", "forks"), [("nothing", True), ("thread", False), ("torch", False)])
def test_a_process_without_threads_forks(beside: str, forks: bool) -> None:
    found = subprocess.run([sys.executable, "-c", FORKS, beside], capture_output=True, text=True, check=True)
    squares, by_itself, here = json.loads(found.stdout)
    assert squares == [0, 1, 4, 9, 16, 25]
    assert by_itself != forks and here == ([] if forks else list(range(6)))


def test_the_report_has_the_same_bytes_on_one_core_and_on_several(tmp_path: Path) -> None:
    study = sample_study(tmp_path / "study")
    written = []
    for cores in ("{0}", "{0, 1, 2}"):
        out = tmp_path / f"cores{len(cores)}"
        code = (
            f"import os; os.sched_getaffinity = lambda process: {cores}\n"
            f"from layerroute.lab.report.build import build_report; build_report({str(study)!r}, out={str(out)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        written.append({file.name: file.read_bytes() for file in out.rglob("*") if file.is_file()})
    assert written[0] == written[1] and len(written[0]) > 20


def test_errors_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(on_all_cores(lambda number: 1 // (number - 1), 3))
