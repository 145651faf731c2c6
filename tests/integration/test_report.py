"""`layerroute compare` and `layerroute report` as a user runs them, on run directories."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from layerroute.cli.main import main
from layerroute.lab.report.style import save_figure
from tests.unit.lab.record_factory import make_run, record, sample_study, sites, write_run

FIGURE_FILES = {
    f"figure-{n}.{suffix}" for n in (*range(1, 7), 8, 9, 10, 13) for suffix in ("png", "svg", "pdf", "csv")
}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = sample_study(tmp_path_factory.mktemp("study"))
    assert main(["report", str(root)]) == 0
    return root


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write SVGs only, PNGs and PDFs empty: for tests that look at everything but the figures."""

    def save(figure: Any, folder: Path, name: str) -> None:
        save_figure(figure, folder, name, formats=("svg",))
        for suffix in ("png", "pdf"):
            (folder / f"{name}.{suffix}").write_bytes(b"")

    monkeypatch.setattr("layerroute.lab.report.figures.save_figure", save)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_all_files_are_there(study: Path) -> None:
    names = set(contents(study / "report"))
    assert names == {"index.html", "paper.md"} | {f"figures/{name}" for name in FIGURE_FILES}


def test_deleting_the_report_and_writing_it_again_gives_the_same_bytes(study: Path) -> None:
    first = contents(study / "report")
    shutil.rmtree(study / "report")
    # Another process: other hash seeds, nothing cached.
    code = "import sys; from layerroute.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(study)]
    subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "77", "PATH": ""})
    assert contents(study / "report") == first


def test_the_page_asks_the_network_for_nothing(study: Path) -> None:
    page = Page((study / "report" / "index.html").read_text(encoding="utf-8"))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img")
        assert "src" not in attributes
        for name in ("href", "xlink:href", "action"):
            target = attributes.get(name)
            if target is not None:
                inline = "data:image/png;base64,", "data:text/csv;base64,"
                assert target.startswith(("#", "figures/figure-", "paper.md", *inline)), (
                    tag,
                    target,
                )
    text = (study / "report" / "index.html").read_text(encoding="utf-8")
    urls = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert urls <= {"http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_links_and_ids_of_the_page_hold(study: Path) -> None:
    page = Page((study / "report" / "index.html").read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("href", "xlink:href"):
            target = attributes.get(name) or ""
            if target.startswith("#"):
                assert target[1:] in ids
            elif target and not target.startswith("data:"):
                assert (study / "report" / target).is_file()


def test_tokens_are_text_and_never_markup(study: Path) -> None:
    page = Page((study / "report" / "index.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert('x')</script>" in page.text


def test_every_table_is_sortable_by_its_values(study: Path) -> None:
    page = Page((study / "report" / "index.html").read_text(encoding="utf-8"))
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    assert len(tables) >= 8
    assert {attributes.get("class") for attributes in tables} == {"sortable"}
    assert [tag for tag, _ in page.tags].count("th") == [tag for tag, _ in page.tags].count("button")
    assert any("data-value" in attributes for tag, attributes in page.tags if tag == "td")


def test_the_head_answers_the_question(study: Path) -> None:
    text = " ".join(Page((study / "report" / "index.html").read_text(encoding="utf-8")).text.split())
    screen, head = (
        text[: text.index("In full")],
        text[text.index("The answer in full") : text.index("Table 1.")],
    )
    for part in (
        "token by token and layer by layer",
        "Is it faster?Not measured: dynamic executes as many FLOPs as baseline, but FLOPs are not time",
        "Is it as good?Yes: dynamic has a lower validation loss than baseline at equal executed FLOPs",
        "Can I trust it?Only in part: 2 of 7 controls missing; dynamic has 7.0% more parameters; 1 run not completed",
    ):
        assert part in screen, part
    for part in (
        "dynamic ends with a lower validation loss than baseline",
        "42, 43 and 44",
        "Example CPU",
        "layerroute study study.yaml",
        "Missing controls: all-GDN and periodic at the same rate",
        "dynamic has +7.0% parameters",
        "periodic, seed 42: failed",
        "bigram model with back-off",
    ):
        assert part in head, part


def test_the_paper_has_no_placeholder_and_its_links_hold(study: Path) -> None:
    paper = (study / "report" / "paper.md").read_text(encoding="utf-8")
    for mark in (
        "PLACEHOLDER",
        "HERE:",
        "INSTRUCTIONS",
        "XX",
        "X.X",
        "If successful",
        "[If",
        "TODO",
        "Citation needed",
    ):
        assert mark not in paper
    assert not re.search(r"\b(nan|None|Undefined)\b", paper)
    for number in (1, 2, 3):
        assert f"*Table {number}: " in paper
    links = re.findall(r"\]\((figures/[^)]+)\)", paper)
    assert {Path(link).name for link in links} == FIGURE_FILES
    for link in links:
        assert (study / "report" / link).is_file()
    cited = {
        int(n)
        for group in re.findall(r"(?<!\w)\[([\d, ]+)\]", paper.split("## References")[0])
        for n in group.split(",")
    }
    listed = {int(n) for n in re.findall(r"^- \[(\d+)\]", paper, flags=re.MULTILINE)}
    assert cited == listed


@pytest.mark.parametrize("name", ["index.html", "paper.md"])
def test_figures_are_numbered_in_the_order_in_which_they_are_shown(study: Path, name: str) -> None:
    text = Page((study / "report" / name).read_text(encoding="utf-8")).text
    shown = [int(number) for number in dict.fromkeys(re.findall(r"Figure (\d+): ", text))]
    assert shown == list(range(1, len(FIGURE_FILES) // 4 + 1))


def test_figure_data_agree_with_the_records(study: Path) -> None:
    training = pd.read_csv(study / "report" / "figures" / "figure-2.csv")
    final = training[
        (training["panel"] == "Validation loss") & (training["step"] == 200) & (training["arm"] == "dynamic")
    ]
    for row in final.itertuples():
        record = json.loads((study / f"dynamic-seed{row.seed}" / "record.json").read_text())
        assert row.value == pytest.approx(record["metrics"]["validation_loss"], rel=1e-5)
    shares = pd.read_csv(study / "report" / "figures" / "figure-1.csv")
    routed = shares[(shares["layer"] == 1) & (shares["path"] == "softmax")]["share_of_tokens"]
    assert float(routed.iloc[0]) == pytest.approx((0.52 + 0.51 + 0.50) / 3)


@pytest.mark.parametrize(
    "runs",
    [
        [("baseline", {})],
        [("dynamic", {"rates": sites(0.5, 0.96)})],
        [("dynamic", {"rates": sites(0.5), "curves": None, "token_routes": None})],
        [("baseline", {"status": "failed", "metrics": {}, "flops": {}, "timing": {}, "parameters": {}})],
        [("baseline", {}), ("dynamic", {"rates": sites(0.5), "status": "interrupted"})],
        [("baseline", {"recipe": {}}), ("dynamic", {"rates": sites(0.5), "recipe": {}})],
        [
            ("baseline", {"pattern": (["gdn"] * 3 + ["softmax"]) * 4}),
            ("<b>bold</b>_|_`x`", {"rates": sites(0.5)}),
        ],
    ],
    ids=[
        "static alone",
        "dynamic alone",
        "nulls",
        "failed alone",
        "one interrupted",
        "empty recipes",
        "odd name",
    ],
)
def test_odd_sets_of_runs(quick: None, tmp_path: Path, runs: list[tuple[str, dict[str, Any]]]) -> None:
    for name, settings in runs:
        write_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", record(name, **settings))
    assert main(["report", str(tmp_path)]) == 0
    assert main(["compare", str(tmp_path)]) == 0
    page = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    paper = (tmp_path / "report" / "paper.md").read_text(encoding="utf-8")
    assert "b" not in [tag for tag, attributes in page.tags if tag == "b" and "class" in attributes]
    for text in (page.text, paper):
        assert not re.search(r"\b(nan|None|Undefined|inf)\b", text)
    assert "<b>bold" not in re.sub(r"```.*?```", "", paper, flags=re.DOTALL)  # code is shown as it is


def test_record_files_and_another_folder(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_run(tmp_path / "one", "baseline")
    second = make_run(tmp_path / "two", "dynamic", rates=sites(0.5, 0.5))
    (tmp_path / "reports").mkdir()
    files = [str(first / "record.json"), str(second)]
    assert main(["report", str(tmp_path / "reports"), *files]) == 0
    assert (tmp_path / "reports" / "report" / "index.html").is_file()
    assert main(["report", str(first), str(second), "--out", str(tmp_path / "elsewhere"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["outcome"] == "no verdict: unequal cost"
    assert Path(shown["page"]) == tmp_path / "elsewhere" / "index.html"
    assert not (first / "report").exists()


def test_what_is_no_report_is_not_overwritten(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "baseline")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my own page")
    assert main(["report", str(run), "--out", str(mine)]) == 2
    assert "nothing there is overwritten" in capsys.readouterr().err
    assert (mine / "index.html").read_text() == "my own page"
    assert main(["report", str(run), "--out", str(run)]) == 2
    assert (run / "record.json").is_file()
    (mine / "index.html").write_text("")  # as a disk that was full leaves it
    assert main(["report", str(run), "--out", str(mine)]) == 0


def test_a_figure_that_is_no_longer_drawn_goes(quick: None, tmp_path: Path) -> None:
    make_run(tmp_path, "baseline")
    dynamic = make_run(tmp_path, "dynamic", rates=sites(0.5, 0.5))
    assert main(["report", str(tmp_path)]) == 0
    shutil.rmtree(dynamic)
    assert main(["report", str(tmp_path)]) == 0
    left = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert left == {f"figure-{n}.{s}" for n in (1, 2) for s in ("png", "svg", "pdf", "csv")}


@pytest.mark.parametrize("command", ["compare", "report"])
def test_runs_on_different_data_are_told_of_where_that_is_allowed(
    command: str, quick: None, tmp_path: Path
) -> None:
    make_run(tmp_path / "a", "baseline")
    make_run(tmp_path / "b", "dynamic", rates=sites(0.5), fingerprint="0f0f")
    assert main([command, str(tmp_path), "--allow-different-data"]) == 0


def test_compare_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(study), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["outcome"] == "wins"
    assert shown["bigram_loss"] == [4.9871]
    assert shown["controls_missing"] == ["all-GDN", "periodic at the same rate"]


def test_neither_command_imports_torch(study: Path) -> None:
    code = (
        "import sys; from layerroute.cli.main import main\n"
        "main(['compare', sys.argv[1]])\n"
        "import layerroute.lab.report.build, layerroute.cli.report\n"
        "bad = {'torch', 'transformers'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(study)], check=True, capture_output=True, text=True)
