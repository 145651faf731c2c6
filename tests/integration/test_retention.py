"""``layerroute retention`` over router folders: scored as served, paired, and kept."""

from __future__ import annotations

import csv
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from layerroute.cli.main import main
from layerroute.data.windows import DocumentEncoder
from layerroute.routing import RoutingConfig
from layerroute.skipping import SkipConfig, add_router, get_router, save_router, skip_flops
from tests.parity.skipping_models import sharpen
from tests.tiny_pretrained import SENTENCE, write_pretrained

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from layerroute.evaluation import local_tasks, retention  # noqa: E402
from layerroute.evaluation.local_tasks import local_task  # noqa: E402
from layerroute.evaluation.retention import by_document  # noqa: E402

WORDS = SENTENCE.split()


def test_each_way_of_reading_an_answer_is_a_measure_of_its_own() -> None:
    """The harness logs a document once for each filter of its task; two of gsm8k would be 80 documents of 40."""
    samples = [
        {"doc_id": document, "filter": way, "exact_match": score}
        for way, scores in (("strict-match", [0.0, 1.0]), ("flexible-extract", [1.0, 1.0]))
        for document, score in reversed([*enumerate(scores)])
    ]
    plain = [{"doc_id": 0, "filter": "none", "acc": 1.0}, {"doc_id": 1, "acc": 0.0}]
    assert by_document({"gsm8k": samples, "plain": plain}) == {
        "gsm8k (strict-match) exact_match": [0.0, 1.0],
        "gsm8k (flexible-extract) exact_match": [1.0, 1.0],
        "plain acc": [1.0, 0.0],
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with two routers for it, tasks and text; all tiny."""
    folder = tmp_path_factory.mktemp("retention")
    draw = random.Random(0)

    def phrase(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    (folder / "text.txt").write_text(phrase(400))
    write_pretrained(folder / "model", folder / "text.txt", pads=True, num_hidden_layers=6)
    for name, layers in (("wide", [2, 3, 4]), ("narrow", [2])):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        add_router(model, SkipConfig(layers=layers, router_layer=2, execution="sparse", skip_path="identity"))
        sharpen(model)
        save_router(model.eval(), folder / name)
    rows: dict[str, list[dict[str, Any]]] = {
        "words": [{"context": phrase(6), "target": draw.choice(WORDS)} for _ in range(6)],
        "choices": [
            {"question": f"{phrase(5)}:", "choices": [phrase(2), phrase(1)], "gold": draw.randrange(2)}
            for _ in range(5)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(files: Path, *runs: str, out: Path) -> list[str]:
    tasks = [str(files / f"{name}.jsonl") for name in ("words", "choices")]
    return [
        "retention", *(str(files / run) for run in runs), "--tasks", *tasks, "--data", str(files / "text.txt"),
        "--windows", "4", "--sequence-length", "32", "--out", str(out), "--device", "cpu", "--batch-size", "2",
    ]  # fmt: skip


def test_runs_are_held_against_their_base_and_against_each_other(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(files, "wide", "narrow", out=tmp_path)) == 0
    captured = capsys.readouterr()
    assert "Table of differences" in captured.out and "Retained" in captured.out
    assert "wide − narrow" in (tmp_path / "retention.md").read_text()
    content = json.loads((tmp_path / "retention.json").read_text())
    assert {(c["task"], c["metric"]) for c in content["retained"]} == {
        ("text", "perplexity"),
        ("words", "acc"),
        ("words", "perplexity"),
        ("choices", "acc"),
        ("choices", "acc_norm"),
    }
    assert content["command"].startswith("layerroute retention") and content["hardware"]["cpu"]
    assert content["skipped"]["base"] == 0.0
    assert 0 < content["skipped"]["wide"] < 1
    # The base's scores are the harness's own on the plain model.
    model = HFLM(pretrained=str(files / "model"), device="cpu", dtype="float32", batch_size=2)
    expected = lm_eval.simple_evaluate(
        model=model,
        tasks=[local_task(files / "words.jsonl")],
        bootstrap_iters=10,
        task_manager=TaskManager(include_defaults=False),
    )
    assert expected is not None
    perplexity = next(c for c in content["retained"] if (c["task"], c["metric"]) == ("words", "perplexity"))
    assert perplexity["reference"] == pytest.approx(expected["results"]["words"]["perplexity,none"], rel=1e-9)
    assert perplexity["value"] != perplexity["reference"], "routing does something"
    # FLOPs are those of the documents of each task, executed by each model.
    shares = {(c["task"], c["model"]): c["executed"] for c in content["retained"]}
    assert all(share > 0 and share != 1 for share in shares.values()) and len(set(shares.values())) == 3 * 2
    whole = json.loads((tmp_path / "scores" / "base.json").read_text())["executed"]["text perplexity"]
    config = AutoConfig.from_pretrained(files / "model")
    assert whole == pytest.approx(
        4 * 32 * skip_flops(config, SkipConfig().resolve(6), 32).base_per_token, rel=0.02
    )
    unequal = [abs(c["executed"] - c["executed_reference"]) > 0.005 for c in content["differences"]]
    assert [c["outcome"] == "no verdict: unequal FLOPs" for c in content["differences"]] == unequal
    assert any(unequal)
    rows = list(csv.DictReader((tmp_path / "retention.csv").read_text().splitlines()))
    assert len(rows) == 3 * 5
    assert "wide" in (tmp_path / "retention.md").read_text()

    # A run that is added costs its own scores alone, and what is there gives the same numbers.
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()}
    assert sorted(kept) == ["base.json", "narrow.json", "wide.json"]
    assert main(command(files, "wide", "narrow", out=tmp_path)) == 0
    assert "scoring" not in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "scores").iterdir()} == kept
    assert json.loads((tmp_path / "retention.json").read_text()) == content


def test_all_are_scored_in_one_precision(files: Path, tmp_path: Path) -> None:
    """The base too: else rounding would pass for what routing costs."""
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        assert main([*command(files, "wide", out=out), "--precision", precision]) == 0
        found[precision] = [
            json.loads((out / "scores" / f"{name}.json").read_text()) for name in ("base", "wide")
        ]
    for one, other in zip(*found.values(), strict=True):
        assert one["values"]["words perplexity"] != other["values"]["words perplexity"]
        assert one["values"]["words perplexity"] == pytest.approx(
            other["values"]["words perplexity"], rel=0.05
        )


def test_runs_of_two_precisions_are_not_scored_unless_one_is_named(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "wide", tmp_path / "wide")
    description = tmp_path / "wide" / "router.json"
    told = json.loads(description.read_text())
    description.write_text(json.dumps(told | {"notes": {**told["notes"], "precision": "bf16"}}))
    arguments = command(files, str(tmp_path / "wide"), "narrow", out=tmp_path / "out")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "--precision" in error and "scoring" not in error, "told before anything is scored"
    assert main([*arguments, "--precision", "fp32"]) == 0


def test_the_first_is_served_at_the_flops_of_another(files: Path, tmp_path: Path) -> None:
    """On questions long enough for a rate to be held, and with skips that cost nothing."""
    draw = random.Random(1)
    lines = [
        json.dumps({"context": " ".join(draw.choices(WORDS, k=90)), "target": draw.choice(WORDS)})
        for _ in range(8)
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    static = {"routing": RoutingConfig(control="static", control_sites=[0])}
    for name, sites, rate, more in (
        ("routed", [2, 3, 4], 0.7, {}), ("other", [2, 3], 0.6, {}), ("static", [2, 3, 4], 0.7, static)
    ):  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(files / "model", dtype=torch.float32)
        skip = SkipConfig(layers=sites, router_layer=2, execution="sparse", skip_path="identity", **more)  # type: ignore[arg-type]
        add_router(model, skip)
        sharpen(model)
        get_router(model).set_rate(rate)
        save_router(model.eval(), tmp_path / name)
    arguments = [
        "retention", *(str(tmp_path / name) for name in ("routed", "other", "static")), "--serve", "rate",
        "--tasks", str(tmp_path / "long.jsonl"),
        "--data", str(files / "text.txt"), "--windows", "4", "--sequence-length", "96", "--out", str(tmp_path / "out"),
        "--device", "cpu", "--batch-size", "2", "--equal-flops",
    ]  # fmt: skip
    assert main(arguments) == 0
    content = json.loads((tmp_path / "out" / "retention.json").read_text())
    names = {f"routed at the FLOPs of {other}": other for other in ("other", "static")}
    assert set(content["skipped"]) == {"base", "routed", "other", "static", *names}
    assert {(c["model"], c["against"]) for c in content["differences"]} == set(names.items())
    for found in content["differences"]:
        as_it_is = next(
            c for c in content["retained"]
            if (c["model"], c["task"], c["metric"]) == ("routed", found["task"], found["metric"])
        )  # fmt: skip
        assert abs(found["executed"] - found["executed_reference"]) < 0.005, found
        assert abs(as_it_is["executed"] - found["executed_reference"]) > 0.01, as_it_is
        assert not found["outcome"].startswith("no verdict")


def kept_values(out: Path, run: str) -> dict[str, list[float]]:
    return json.loads((out / "scores" / f"{run}.json").read_text())["values"]


def test_scores_are_kept_for_the_same_model_text_and_batch_alone(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A router's manifest may stay as it is when it is trained anew; a folder keeps its name with other text."""
    for name in ("model", "wide", "text.txt"):
        copy = shutil.copytree if (files / name).is_dir() else shutil.copy
        copy(files / name, tmp_path / name)
    router, texts, out = tmp_path / "wide", tmp_path / "texts", tmp_path / "out"
    description = json.loads((router / "router.json").read_text())
    description["base"]["id"] = str(tmp_path / "model")
    (router / "router.json").write_text(json.dumps(description))
    texts.mkdir()
    shutil.move(tmp_path / "text.txt", texts / "a.txt")

    def scored(batch: int = 2) -> list[str]:
        words = ["retention", str(router), "--data", str(texts), "--windows", "4", "--sequence-length", "32"]
        assert main([*words, "--out", str(out), "--device", "cpu", "--batch-size", str(batch)]) == 0
        said = capsys.readouterr().err.splitlines()
        return [line.rpartition(" ")[2] for line in said if "scoring" in line]

    assert scored() == ["base", "wide"]
    first = kept_values(out, "wide")
    assert scored() == []
    weights = load_file(router / "router.safetensors")
    save_file({name: 3 * value for name, value in weights.items()}, router / "router.safetensors")
    assert scored() == ["wide"]
    assert kept_values(out, "wide") != first
    (texts / "a.txt").write_text((texts / "a.txt").read_text()[200:])
    assert scored() == ["base", "wide"]
    assert scored(batch=1) == ["base", "wide"]
    (out / "scores" / "base.json").write_text('{"label"')
    assert scored(batch=1) == ["base"]


def test_the_short_rest_of_a_text_does_not_count_as_a_window(files: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files / "model")
    text = (files / "text.txt").read_text()
    tokens = len(DocumentEncoder.of(tokenizer).windows([text], 32, None)[0])
    words = [
        "retention",
        str(files / "wide"),
        "--data",
        str(files / "text.txt"),
        "--windows",
        str(tokens + 5),
    ]
    assert main([*words, "--sequence-length", "32", "--out", str(tmp_path), "--device", "cpu"]) == 0
    (losses,) = kept_values(tmp_path, "base").values()
    assert len(losses) == tokens


def test_what_cannot_be_scored_as_asked_is_told_before_a_model_is_loaded(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(files / "model", dtype=torch.float32)
    static = RoutingConfig(control="static", control_sites=[0])
    add_router(model, SkipConfig(layers=[2, 3], router_layer=2, skip_path="identity", routing=static))
    save_router(model.eval(), tmp_path / "static")
    metrics = [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]
    forms = [replace(form, config={**form.config, "metric_list": metrics}) for form in local_tasks._FORMS]
    monkeypatch.setattr(local_tasks, "_FORMS", forms)
    for name in ("load_pretrained", "load_model"):
        monkeypatch.setattr(retention, name, lambda *given, **more: pytest.fail("a model is loaded"))
    text = ["--data", str(files / "text.txt"), "--sequence-length", "32"]
    for words, told in (
        (["wide", *text, "--equal-flops"], "name one or more"),
        ([str(tmp_path / "static"), "wide", *text, "--equal-flops"], "--equal-flops: rate is not possible"),
        (["wide", *text, "--limit", "3"], "--limit is for --tasks"),
        (["wide", *text, "--shots", "0"], "--shots is for --tasks"),
        (["wide", "--tasks", str(files / "words.jsonl")], "words tells bleu; what is retained"),
        *([] if torch.cuda.is_available() else [(["wide", *text, "--device", "cuda"], "no GPU")]),
    ):
        assert main(["retention", *(str(files / word) if word == "wide" else word for word in words)]) == 2
        assert told in capsys.readouterr().err


def test_a_run_called_base_and_a_task_called_text_do_not_stand_for_the_base_and_the_text(
    files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files / "wide", tmp_path / "runs" / "base")
    shutil.copy(files / "words.jsonl", tmp_path / "text.jsonl")
    description = tmp_path / "runs/base/router.json"
    told = json.loads(description.read_text())
    told["base"]["id"] = str(files / "model")
    description.write_text(json.dumps(told))
    assert main([
        "retention", str(tmp_path / "runs" / "base"), "--tasks", str(tmp_path / "text.jsonl"), "--data",
        str(files / "text.txt"), "--windows", "4", "--sequence-length", "32", "--out", str(tmp_path / "out"),
        "--device", "cpu",
    ]) == 0  # fmt: skip
    content = json.loads((tmp_path / "out" / "retention.json").read_text())
    assert set(content["skipped"]) == {"base", "runs/base"}
    own = f"{tmp_path.name}/text"
    assert {(c["task"], c["metric"], c["documents"]) for c in content["retained"]} == {
        ("text", "perplexity", 4), (own, "perplexity", 6), (own, "acc", 6)
    }  # fmt: skip
