"""The page and picture of transfer, from a record alone."""

from __future__ import annotations

import pandas as pd

from layerroute.lab.report.style import SOFTMAX, figure_style
from layerroute.lab.report.transfer import transfer_figure, write_transfer
from layerroute.lab.transfer import points_of
from tests.unit.lab.test_transfer import RECORD, row

WHOLE = {
    **RECORD,
    "model": "<b>model</b>",
    "command": "layerroute transfer",
    "recipe": {"granularity": "sequence"},
    "data": {"kinds": {"prose": {"share": 1.0, "source": "files a.jsonl"}}},
    "seconds": 3.0,
    "hardware": {"cpu": "a cpu", "cores": 2},
    "revision": None,
    "dirty": None,
}


def drawn(record):
    with figure_style():
        return transfer_figure(pd.DataFrame(points_of(record)), "static")


def test_home_is_marked_and_what_costs_otherwise_has_no_dot():
    (axes,) = drawn(WHOLE).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prose", "code", "maths"]
    dots = [
        (float(one.lines[0].get_xdata()[0]), one.lines[0].get_markerfacecolor()) for one in axes.containers
    ]
    assert sorted(dots) == [(-0.2, "white"), (-0.02, SOFTMAX), (0.05, SOFTMAX)]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["away", "home"]
    assert [text.get_text() for text in axes.texts] == ["away: no verdict, costs differ"]


def test_every_budget_has_its_panel():
    rows = [row("a", (0.1, 0.0, 0.2, 0.3), budget=budget) for budget in (0.12, 0.25, 0.4)]
    assert len(drawn({"rows": rows}).axes) == 3


def test_the_page_stands_alone_and_says_the_same_each_time(tmp_path):
    files = write_transfer(WHOLE, tmp_path)
    assert all(path.is_file() for path in files)
    page = files[0].read_text()
    assert "per-sequence routing against" in page
    assert (
        "&lt;b&gt;model" in page
        and "<b>model" not in page
        and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    )
    first = [path.read_bytes() for path in files]
    write_transfer(WHOLE, tmp_path)
    assert [path.read_bytes() for path in files] == first
