"""`layerroute transfer` as users meet it, on a tiny model: leave one kind out, resume, judge a router."""

import json
from itertools import chain

import pytest

from layerroute.cli import transfer_cells
from layerroute.cli.main import main
from layerroute.skipping.calibration.transfer import STATIC
from tests.tiny_pretrained import SENTENCE, write_documents, write_pretrained

JUDGED = ["--length", "32", "--tokens-heldout", "384"]
SIZES = ["--length", "32", "--tokens-statistics", "384", "--tokens-selection", "128", "--rank", "4"]
SIZES += ["--tokens-heldout", "384", "--layers", "2-5", "--router-layer", "2"]
OTHER = "def run self return value for index in range import yield while with open as file lambda raise error"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    write_documents(folder, {"a": 60}, length=90)
    write_documents(folder, {"more": 60}, length=90, sentence=f"{SENTENCE} and more")
    write_documents(folder, {"b": 60}, length=90, sentence=OTHER)
    write_documents(folder, {"c": 60}, length=90, sentence=f"{SENTENCE} {OTHER} one two three four")
    lines = (folder / "more.jsonl").read_text().splitlines()
    (folder / "copies.jsonl").write_text("\n".join(lines[:5] * 12))
    known = (folder / "a.jsonl").read_text().splitlines()
    (folder / "more_and_known.jsonl").write_text("\n".join(chain(*zip(known, lines, strict=True))))
    write_pretrained(folder / "model", folder / "a.jsonl")
    return folder


FIVE = "the kind 'copies' has 5 documents of at least 32 tokens among 5 left, and 12 are needed"


def kinds(files, *names):
    return [word for name in names for word in ("--data", f"{name}={files / name}.jsonl")]


@pytest.fixture(scope="module")
def transferred(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "transfer"
    words = ["transfer", str(files / "model"), *kinds(files, "a", "b", "c"), *SIZES, "--budget", "0.5"]
    assert main([*words, "--out", str(out)]) == 0
    return out, words


def test_every_kind_is_left_out_and_judged_at_equal_cost(transferred):
    out, _ = transferred
    record = json.loads((out / "transfer.json").read_text())
    assert record["kind"] == "transfer" and record["hardware"]["cpu"]
    away = [row for row in record["rows"] if not row["home"]]
    home = [row for row in record["rows"] if row["home"]]
    assert [row["kind"] for row in away] == ["a", "b", "c"]
    assert [row["kind"] for row in home] == [f"home without {kind}" for kind in "abc"]
    assert sorted(path.name for path in (out / "cells").iterdir()) == ["a-50.json", "b-50.json", "c-50.json"]
    for row in record["rows"]:
        assert row["windows"] == 12 and 0 < row["served"] < 1 and row["dense"] > 0
        assert set(row["arms"]) == set(STATIC)
        # A rate is held to a token and a half; windows are of 32 tokens, four of which always run.
        assert abs(row["held"]["served"] - 0.5) < 0.06 and row["held"]["loss"] != row["loss"]
        for arm in row["arms"].values():
            gap = arm["at_equal_cost"]
            if gap is not None:
                assert abs(gap["routed_saved"] - arm["saved"]) <= 0.005
                assert gap["low"] <= gap["mean"] <= gap["high"] <= gap["worst"] + 1
    page = (out / "transfer.html").read_text()
    assert "<svg" in page and "equal executed FLOPs" in page and "home without b" in page
    assert (out / "transfer.png").stat().st_size > 10_000
    assert (out / "transfer.csv").read_text().count("\n") == 7


def test_finished_cells_are_not_done_again_and_damaged_ones_are(transferred, capsys, monkeypatch):
    out, words = transferred
    first = json.loads((out / "transfer.json").read_text())["rows"]
    done = []
    work = transfer_cells.transfer_cell
    monkeypatch.setattr(transfer_cells, "transfer_cell", lambda *a, **k: done.append(1) or work(*a, **k))
    assert main([*words, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first and not done
    cell = out / "cells" / "b-50.json"
    cell.write_text(cell.read_text()[:100])
    assert main([*words, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first and len(done) == 1
    assert main([*words, "--out", str(out), "--seed", "7"]) == 0
    assert len(done) == 4, "another seed is another cell"
    printed = capsys.readouterr().out
    assert "Table of transfer" in printed and "50% away: " in printed and "50% home: " in printed


def test_a_router_is_judged_on_every_kind_and_its_home_is_marked(files, tmp_path, capsys):
    router = tmp_path / "router"
    sizes = [word if word != "384" else "512" for word in SIZES]
    words = ["calibrate", str(files / "model"), *kinds(files, "a", "c"), *sizes, "--budget", "0.5"]
    assert main([*words, "--out", str(router), "--controls"]) == 0
    capsys.readouterr()
    more = ["--data", f"a={files / 'more'}.jsonl"]
    words = [
        "transfer",
        str(router),
        *more,
        *kinds(files, "b"),
        *JUDGED,
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["kind"], row["home"], row["left_out"]) for row in rows] == [
        ("a", True, None),
        ("b", False, None),
    ]
    assert all(set(row["arms"]) == set(STATIC) for row in rows)
    assert main([*words[:2], "--data", f"a={files / 'more_and_known'}.jsonl", *JUDGED, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == rows[:1], (
        "what was calibrated on comes in another file"
    )
    static = router / "controls" / "static_greedy"
    assert main([*words[:2], *kinds(files, "b"), *JUDGED, "--against", str(static), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    row_b = rows[1]
    assert row["arms"]["static_greedy"] == rows[1]["arms"]["static_greedy"]
    assert main([*words[:2], *kinds(files, "b"), *JUDGED, "--serve", "rate", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (held,) = record["rows"]
    assert record["recipe"]["serve"] == "rate" and held["arms"].keys() == row_b["arms"].keys()
    assert held["held"]["served"] == held["served"] == row_b["held"]["served"]
    assert abs(held["served"] - 0.5) < 0.06 and held["loss"] != row_b["loss"]
    assert main(["transfer", str(static), *kinds(files, "b"), *JUDGED]) == 2
    assert "has no static arms to compare with" in capsys.readouterr().err
    for wrong, told in (
        (["--data", f"fresh={files / 'c'}.jsonl"], "has seen this text (the kind 'fresh')"),
        (kinds(files, "copies"), FIVE),
        ([*kinds(files, "b"), "--unit", "block"], "--unit is for a MODEL"),
        ([*kinds(files, "b"), "--skip-path", "non_linear"], "--skip-path is for a MODEL"),
        ([*kinds(files, "b"), "--tokens-search", "64"], "--tokens-search is for a MODEL"),
    ):
        assert main([*words[:2], *JUDGED, *wrong]) == 2
        assert told in capsys.readouterr().err
    description = json.loads((router / "router.json").read_text())
    description["notes"]["documents"] = [3]
    (router / "router.json").write_text(json.dumps(description))
    assert main([*words[:2], *kinds(files, "b"), *JUDGED]) == 2
    assert "notes.documents must be digests in hexadecimal" in capsys.readouterr().err
    write_pretrained(tmp_path / "other", files / "b.jsonl", vocab_size=300)
    sizes = [*sizes, "--budget", "0.5", "--out", str(tmp_path / "of_other"), "--controls"]
    assert main(["calibrate", str(tmp_path / "other"), *kinds(files, "a", "c"), *sizes]) == 0
    capsys.readouterr()
    static = tmp_path / "of_other" / "controls" / "static_greedy"
    assert main([*words[:2], *kinds(files, "b"), *JUDGED, "--against", str(static)]) == 2
    assert "is of another base model than" in capsys.readouterr().err


def test_copies_of_a_document_are_one_window_of_a_kind(files, capsys):
    words = ["transfer", str(files / "model"), *kinds(files, "a", "b", "copies"), *SIZES, "--budget", "0.5"]
    assert main(words) == 2
    assert FIVE in capsys.readouterr().err
