"""The layer-skipping report from made-up records: every figure with its data, the front, and the same bytes again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from layerroute.capabilities.skipping.figures import FIGURES, _depth, site_names
from layerroute.errors import UserError
from layerroute.lab.report.build import build_report
from layerroute.lab.report.style import SOFTMAX, save_figure
from layerroute.lab.runs import load_runs
from tests.unit.lab.record_factory import make_run, sites
from tests.unit.lab.report.test_speed import record as speed_record
from tests.unit.lab.report.test_speed import skipping
from tests.unit.lab.report.walk import SKIPPING, drawn, view

RUNS = {  # arm: (what it starts from, rate, loss)
    "full_depth": (None, 1.0, 3.0),
    "token": ("token", 0.75, 3.3),
    "static_greedy": ("static_greedy", 0.75, 3.4),
    "random": ("random", 0.75, 3.9),
    "wasteful": ("token", 0.9, 3.95),
}


def study(root: Path) -> Path:
    for arm, (start, rate, loss) in RUNS.items():
        for seed in (1, 2):
            content = _content(arm, seed, start, rate, loss + 0.01 * seed)
            make_run(root, arm, seed, **content)
    return root


def _content(arm: str, seed: int, start: str | None, rate: float, loss: float) -> dict[str, Any]:
    from tests.unit.lab.record_factory import record

    rates = sites(rate, rate, layer=4)
    plain = record(arm, seed, rates=rates, loss=loss)
    control = {"full_depth": "static", "random": "random"}.get(arm)
    routing = {**plain["routing"], "paths": ["skip", "run"], "expensive_path": "run", "control": control}
    routing |= {"skipped": 1 - rate, "router": "token"}
    flops = {**plain["flops"], "base_per_token": 1e6, "executed_per_token": 1e6 * (0.2 + 0.8 * rate)}
    recipe = {
        **plain["recipe"],
        "capability": "layer_skipping",
        "model": {"name": "tiny"},
        "skip": {"routing": {"control": control}},
        "start": {"method": "fresh"} if start is None else {"method": "calibrated", "arm": start},
    }
    changes = {"routing": routing, "flops": flops, "recipe": recipe, "capability": "layer_skipping"}
    return {"rates": rates, "loss": loss, **changes}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def save(figure: Any, folder: Path, name: str) -> None:
        save_figure(figure, folder, name, formats=("svg",))

    monkeypatch.setattr("layerroute.lab.report.figures.save_figure", save)
    return build_report(study(tmp_path), bench=[bench(tmp_path)])[0].parent


def bench(folder: Path) -> Path:
    """A record as `layerroute bench prefill --out` writes it."""
    path = folder / "bench.json"
    rows = [skipping(skip, sparse, 0.9) for skip, sparse in ((0.25, 1.2), (0.5, 1.6))]
    path.write_text(json.dumps(speed_record("prefill", rows)))
    return path


def test_every_figure_is_drawn_with_its_data_and_shown(report: Path) -> None:
    page, paper = ((report / name).read_text() for name in ("index.html", "paper.md"))
    for name in (figure.name for figure in FIGURES):
        assert (report / "figures" / f"{name}.svg").is_file(), name
        assert len(pd.read_csv(report / "figures" / f"{name}.csv")) > 1, name
        assert f'<figure id="{name}">' in page, name
        assert f"(figures/{name}.png)" in paper, name
    assert "Kinds of tokens by layer" in page
    assert "–" not in page[page.index("<dt>Hardware</dt>") :].partition("</dd>")[0], (
        "no accelerator, no word of one"
    )
    assert "<code>layerroute bench</code>" in page
    assert "Table of agreement" in page
    rows = paper[: paper.index("*Table of agreement")].rstrip().split("\n\n")[-1].splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| token", "| wasteful"], "learned routers alone"


def test_the_front_holds_what_no_arm_beats(report: Path) -> None:
    data = pd.read_csv(report / "figures/compute.csv").groupby("arm")["on_front"].first()
    assert data.to_dict() == {
        "full_depth": True,
        "token": True,
        "static_greedy": False,
        "random": False,
        "wasteful": False,
    }


def test_figures_say_what_the_records_say(report: Path) -> None:
    bars = pd.read_csv(report / "figures/bars.csv").set_index("arm")
    assert bars.loc["token", "validation_loss"] == pytest.approx(3.315)
    assert (bars["seeds"] == 2).all()
    kinds = pd.read_csv(report / "figures/kinds.csv")
    assert set(kinds["by"]) == {"kind"}
    assert kinds["rate"].between(0, 1).all()
    annealing = pd.read_csv(report / "figures/annealing.csv")
    assert set(annealing["arm"]) == {"token", "static_greedy", "wasteful"}, "controls have nothing to anneal"
    assert set(annealing["panel"]) == {"temperature", "mean rate in training (%)"}
    validation = pd.read_csv(report / "figures/validation.csv")
    assert set(validation["arm"]) == set(RUNS)


def test_arms_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    styles = view(load_runs([study(tmp_path)]), SKIPPING).styles
    token, wasteful = styles["token"], styles["wasteful"]
    assert token.color == SOFTMAX and token.dashes == "-", "the arm in question"
    assert token.marker == wasteful.marker, "one marker a kind"
    assert token.color != wasteful.color and token.dashes != wasteful.dashes


def test_the_map_of_sites_has_a_row_an_arm_that_chooses(tmp_path: Path) -> None:
    figure, data, _ = drawn("layers", view(load_runs([study(tmp_path)]), SKIPPING), SKIPPING)
    assert figure.axes[0].images[0].get_array().shape == (3, 2) and len(data) == 6
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["4", "5"]
    assert sorted(["layer10.block", "layer4.mlp", "layer4.attention"], key=_depth)[-1] == "layer10.block"
    assert site_names(["layer4.mlp", "layer4.attention"]) == (["4.mlp", "4.attention"], "layer and unit")


def test_deleted_and_written_again_it_has_the_same_bytes(report: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(f.relative_to(report)): f.read_bytes() for f in report.rglob("*") if f.is_file()}

    first = contents()
    shutil.rmtree(report)
    build_report(report.parent, bench=[report.parent / "bench.json"])
    assert contents() == first


def test_speed_is_that_of_the_benchmark_and_absent_without_one(report: Path) -> None:
    speed = pd.read_csv(report / "figures/speed.csv").set_index(["arm", "share_percent"])["speedup_median"]
    assert speed["sparse", 50.0] == 1.6 and speed["masked", 25.0] == 0.9
    assert speed["ideal", 50.0] == pytest.approx(1.6 / 0.9, rel=1e-5)
    build_report(report.parent)
    assert not (report / "figures/speed.csv").exists()
    assert "no benchmark record was given" in (report / "index.html").read_text()


def test_what_is_no_benchmark_record_is_told(report: Path) -> None:
    with pytest.raises(UserError, match="is not a record of"):
        build_report(report.parent, bench=[report.parent / "token-seed1/record.json"])


def test_the_paper_has_all_of_its_parts_and_cites_what_it_lists(report: Path) -> None:
    paper = (report / "paper.md").read_text()
    parts = "Introduction|Related work|Method|Experimental setup|Results|Discussion|Limitations|Conclusion"
    assert re.findall(r"^## \d+\. (.*?)(?: and future work)?$", paper, re.MULTILINE) == parts.split("|")
    body, references = paper.split("## References")
    cited = {number for group in re.findall(r"(?<!\w)\[([\d, ]+)\]", body) for number in group.split(", ")}
    assert cited <= set(re.findall(r"^- \[(\d+)\]", references, re.MULTILINE))
    assert "**Abstract.**" in paper and "token skips" in body.split("## 1.")[0]
    assert "early exit" not in body.split("### 3.2")[1].split("## 4.")[0], "the method is that of the subject"
    assert not re.search(r"\b(nan|None|Undefined|defaultdict)\b", paper)
