import io
from pathlib import Path

import pytest
from rich.console import Console

from layerroute.lab.compare import compare as compare_runs
from layerroute.lab.report.terminal import print_comparison
from layerroute.lab.runs import load_runs
from tests.unit.lab.record_factory import make_run, sample_study, sites


def printed(root: Path, width: int = 80) -> str:
    stream = io.StringIO()
    print_comparison(compare_runs(load_runs([root])), Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_study(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("width", [80, 200])
def test_nothing_is_cut_off(study: Path, width: int) -> None:
    text = printed(study, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    words = text.split()
    for word in ("4.091", "4.987", "FAILED", "cannot", "leaning", "+7.0%", "2e-3", "dynamic_strong_balance"):
        assert word in words


def test_words_are_kept_whole_where_they_fit(study: Path) -> None:
    words = set(printed(study).split())
    comparison = compare_runs(load_runs([study]))
    for name in ("main", "routing", "efficiency"):
        for row in comparison.tables[name].rows:
            for cell in row.cells:
                assert set(cell.text.split()) <= words


def test_plain_when_piped(study: Path) -> None:
    assert "\x1b" not in printed(study)


def test_the_verdict_is_last(study: Path) -> None:
    tail = " ".join(printed(study).split()[-90:])
    assert "dynamic ends with a lower validation loss than baseline" in tail
    assert tail.endswith("Not completed, and in no number: periodic seed 42 (failed).")


def test_many_heads_and_a_long_name(tmp_path: Path) -> None:
    name = "an_arm_with_a_name_that_is_longer_than_any_column_should_be_in_80"
    make_run(tmp_path, name, rates={f"layer{i}.head{j}": 0.5 for i in range(2) for j in range(12)})
    make_run(tmp_path, "baseline", rates=sites(0.5))
    text = printed(tmp_path)
    assert max(map(len, text.splitlines())) <= 80
    assert name in text.replace("\n", "").replace(" ", "") or name[:20] in text


def test_whether_a_router_holds_its_rate_is_told(tmp_path: Path) -> None:
    points = [
        {"multiple": m, "length": 128 * m, "accuracy": 0.9, "mean_rate": 0.25 / m, "answers": 9, "loss": 1.0}
        for m in (1, 16)
    ]
    recall = {"task": "mqar", "pairs": 16, "chance": 1 / 32, "by_length": points, "by_distance": []}
    make_run(tmp_path, "dynamic", rates=sites(0.25), recall=recall)
    assert "dynamic does not hold its rate but the number of tokens" in " ".join(printed(tmp_path).split())
