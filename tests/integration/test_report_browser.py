"""The report's page in a real browser, from disk: tables sort, and tokens tell their routes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from layerroute.lab.report.build import build_report
from tests.unit.lab.record_factory import sample_study

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

PROBE = """
<script>
addEventListener("load", () => {
  const found = {errors: window.failures};
  const table = document.querySelector("table.sortable");
  const column = (n) => [...table.tBodies[0].rows].filter((row) => row.className === "arm")
    .map((row) => Number(row.cells[n].dataset.value)).filter((value) => !Number.isNaN(value));
  const heads = [...table.querySelectorAll("th")];
  const numeric = heads.findIndex((head, n) => head.className === "n" && new Set(column(n)).size > 2);
  const values = () => column(numeric);
  const button = table.querySelectorAll("th button")[numeric];
  button.click(); found.up = values();
  button.click(); found.down = values();
  const token = document.querySelector("#tokens .tok");
  token.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 20, clientY: 20}));
  const tip = document.getElementById("tip");
  found.tip = tip.textContent; found.shown = getComputedStyle(tip).display;
  const result = document.createElement("pre");
  result.id = "probe"; result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_tables_sort_and_tokens_tell_their_routes(tmp_path: Path) -> None:
    page, _ = build_report(sample_study(tmp_path / "study", seeds=(42,)))
    text = page.read_text(encoding="utf-8")
    early = (
        "<script>window.failures = []; addEventListener('error', (e) => failures.push(e.message));</script>"
    )
    probed = page.with_name("probed.html")
    probed.write_text(
        text.replace("<body>", f"<body>{early}").replace("</body>", f"{PROBE}</body>"), encoding="utf-8"
    )
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000",
        "--dump-dom",
        probed.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stdout[-2000:]
    found = json.loads(unescape(match.group(1)))
    assert found["errors"] == []
    assert len(found["up"]) >= 3
    assert found["up"] == sorted(found["up"]) and found["down"] == sorted(found["up"], reverse=True)
    assert found["up"] != found["down"]
    assert found["shown"] == "block"
    assert re.search(r"layer1\.mixer: (gdn|GDN|softmax) \(softmax \d+%\)", found["tip"]), found["tip"]
