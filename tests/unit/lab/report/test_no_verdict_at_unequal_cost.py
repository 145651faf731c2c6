"""No door names a winner of two arms that do not cost the same, or were not treated alike; at equal cost each does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from layerroute.cli import study
from layerroute.cli.main import main
from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.compare import compare as compare_skipping
from layerroute.lab.headroom import gaps
from layerroute.lab.headroom import verdict as headroom_verdict
from layerroute.lab.report.style import FORMATS
from layerroute.lab.retention import Scores, retention
from layerroute.lab.runs import load_runs
from tests.unit.lab.record_factory import record, sites, write_run
from tests.unit.lab.test_skipping_comparison import run as skipping_run

WINNER = re.compile(
    r"\bwins?\b(?! more)|\bwon\b|\bloses?\b|\bbeats?\b|\bbetter\b|\bworse\b|\bahead of\b|\bbehind\b"
    r"|ends with a (?:lower|higher)|recalls (?:more|less)|achiev\w+ a lower|assignment does as well|Improvement: ",
    re.IGNORECASE,
)
BOILERPLATE = (
    "fewer is better",
    "down and to the left is better",
    "predict text better than one",
    "predict better than a static one",
    "plus is better everywhere",
    "(negative is better)",
    "fall behind on recall",
)
"""Said of no arm of the comparison."""
SEEDS = (1, 2, 3)


def named(text: str) -> list[str]:
    """Words that name a winner, each with what stands around it."""
    text = " ".join(text.split())
    for phrase in BOILERPLATE:
        text = text.replace(phrase, "")
    return [text[max(0, m.start() - 60) : m.end() + 60] for m in WINNER.finditer(text)]


def attention(folder: Path, unlike: str | None) -> None:
    recall = {"task": "mqar", "pairs": 16, "chance": 1 / 32, "by_distance": []}
    for arm, loss in (("static", 4.5), ("dynamic", 4.0), ("random", 4.4)):
        for seed in SEEDS:
            settings: dict[str, Any] = {"executed": 2.8e6}
            if arm != "static":
                settings["rates"] = sites(0.5, 0.4)
            if arm == "random":
                settings["control"] = "random"
            if arm == "dynamic" and unlike == "cost":
                settings["executed"] = 2.8e6 * 1.006
            if arm == "dynamic" and unlike == "steps":
                settings["steps"] = 300
            content = record(arm, seed, loss=loss + 0.01 * seed + 0.001 * (seed % 2), **settings)
            content["metrics"]["bigram_loss"] = None  # a floor, and no arm
            point = {"multiple": 1, "length": 128, "accuracy": 1 - loss / 5, "loss": 1.0, "answers": 9}
            content["recall"] = {
                **recall,
                "by_length": [point | {"accuracy": point["accuracy"] + seed / 1000}],
            }
            if arm == "dynamic" and unlike == "context":
                content["flops"]["context_length"] *= 2
            if arm == "dynamic" and unlike == "learning rate":
                content["recipe"]["train"]["learning_rate"] *= 2
            write_run(folder / content["run"], content)


def skipping(folder: Path, unlike: str | None) -> None:
    for seed in SEEDS:
        runs = [
            skipping_run("token", seed, skip=0.25, above=0.3, dearer=0.006 if unlike == "cost" else 0.0),
            skipping_run("greedy", seed, skip=0.25, above=0.5, start="static_greedy"),
            skipping_run("random", seed, skip=0.25, above=0.9, control="random"),
            skipping_run("periodic", seed, skip=0.25, above=0.8, control="periodic"),
        ]
        content = runs[0].record
        if unlike == "steps":
            content["metrics"]["steps"] += 1
        if unlike == "context":
            content["flops"]["context_length"] *= 2
        if unlike == "learning rate":
            content["recipe"]["train"]["schedule"] = "cosine"
            for run in runs[1:]:
                run.record["recipe"]["train"]["schedule"] = "linear"
        for run in runs:
            run.record["run"] = f"{run.arm}-seed{seed}"
            run.record["token_routes"] = None
            write_run(folder / run.record["run"], run.record)


def compare(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["compare", str(folder), *words]) == 0
    return capsys.readouterr().out


def not_drawn(figure: Any, folder: Path, name: str, formats: Iterable[str] = FORMATS) -> None:
    """Files without a figure: what is drawn names no winner in words, and takes most of the time."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        (folder / f"{name}.{suffix}").write_text("<svg></svg>")


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = folder / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layerroute.lab.report.figures.save_figure", not_drawn)
        assert main(["report", str(folder), "--out", str(out), "--json"]) == 0
    page = re.sub(
        r"<style>.*?</style>|<script>.*?</script>|<svg.*?</svg>",
        "",
        (out / "index.html").read_text(),
        flags=re.S,
    )
    return "\n".join([capsys.readouterr().out, page, (out / "paper.md").read_text()])


def study_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``layerroute study`` prints at its end; its report is that of ``report``."""
    runs = load_runs([folder])
    judge = compare_skipping if runs[0].record["capability"] == "layer_skipping" else compare_runs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "layerroute.lab.report.build.build_report", lambda out: (out / "index.html", judge(runs))
        )
        summary = {"runs": [], "chosen": {}, "at_the_edge": [], "counts": {"failed": 0, "completed": 3}}
        assert study._report(SimpleNamespace(out=folder), summary, Console(width=200)) == 0
    return capsys.readouterr().out


DOORS: dict[str, Callable[..., str]] = {
    "compare": compare,
    "compare --json": lambda folder, capsys: compare(folder, capsys, "--json"),
    "compare --baseline": lambda folder, capsys: compare(folder, capsys, "--baseline", "random"),
    "study": study_end,
    "report": report,
}


@pytest.mark.parametrize("unlike", ["cost", "steps", "context", "learning rate"])
@pytest.mark.parametrize("write", [attention, skipping])
@pytest.mark.parametrize("door", DOORS)
def test_no_winner_is_named(
    door: str,
    write: Callable[[Path, str | None], None],
    unlike: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if door == "report" and unlike not in ("cost", "steps"):
        pytest.skip("the page shows what compare shows, and takes its time")
    write(tmp_path, unlike)
    text = DOORS[door](tmp_path, capsys)
    # The controls are of equal cost among themselves: what is said of them says nothing of routing.
    about_routing = [words for words in named(text) if re.search(r"\b(token|dynamic)\b", words)]
    assert about_routing == []
    assert re.search("no verdict", text, re.IGNORECASE)
    assert {"cost": "FLOPs", "steps": "steps"}.get(unlike, unlike) in text


@pytest.mark.parametrize("write", [attention, skipping])
@pytest.mark.parametrize("door", DOORS)
def test_at_equal_cost_the_same_door_names_one(
    door: str, write: Callable[[Path, str | None], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, None)
    text = DOORS[door](tmp_path, capsys)
    assert named(text)
    if not door.startswith("study"):
        assert "within half a point of share" in " ".join(text.split()), (
            "the caption says how equality was reached"
        )


@pytest.mark.parametrize("executed", [0.75, 0.756])
def test_retention(executed: float) -> None:
    key = ("text", "perplexity")
    base = Scores(label="base", skipped=0.0, values={key: [3.0, 3.1, 2.9]}, executed={key: 1.0})
    token = Scores(label="token", skipped=0.2, values={key: [3.1, 3.2, 3.0]}, executed={key: executed})
    rival = Scores(label="greedy", skipped=0.2, values={key: [3.3, 3.4, 3.2]}, executed={key: 0.75})
    found = retention(base, [token, rival])
    words = named(
        f"{json.dumps(found.to_dict())} {found.table.to_markdown()} {found.differences.to_markdown()}"
    )
    assert bool(words) is (executed == 0.75)


@pytest.mark.parametrize("executed", [0.75, 0.756])
def test_headroom(executed: float) -> None:
    row = {
        "budget": 0.25,
        "influence": {"executed": executed, "window_losses": [3.1, 3.2, 3.0]},
        "static": [{"executed": 0.75, "window_losses": [3.3, 3.4, 3.2]}],
    }
    text = headroom_verdict([{**row, "gap": gaps([row])[0]}])
    assert bool(named(text)) is (executed == 0.75) and ("No verdict" in text) is (executed != 0.75)
