"""`layerroute calibrate` and `headroom` as users meet them, on a tiny model with a tokenizer of its own."""

import json

import pytest
import torch

from layerroute.cli.main import main
from layerroute.data.kinds import parse_kinds
from layerroute.data.texts import Texts
from layerroute.precision import choose_precision
from layerroute.skipping import devices, executed, get_router, last_decision
from layerroute.skipping.calibration import CONTROLS, TABLE, arm_folder, draw_windows, memory, score
from layerroute.skipping.storage import load_routed, read_router
from tests.tiny_pretrained import write_documents, write_pretrained
from tests.unit.skipping.calibration.tiny_calibration import Cut, cut_at_fit

SIZES = ["--length", "32", "--tokens-statistics", "768", "--tokens-selection", "256", "--rank", "4"]
LAYERS = ["--layers", "2-5", "--router-layer", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model folder and two text files."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_documents(folder, {"train": 70, "heldout": 12}, length=90)
    write_pretrained(folder / "model", folder / "train.jsonl")
    return folder


def calibrate(files, *more):
    data = ["--data", str(files / "train.jsonl"), "--heldout", str(files / "heldout.jsonl")]
    sizes = [*SIZES, "--tokens-heldout", "320", *LAYERS]
    return main(["calibrate", str(files / "model"), *data, *sizes, *more])


@pytest.mark.parametrize(
    "who",
    [
        "per_layer",
        "token",
        "per_layer --history 2 --skip-path non_linear",
        "sequence --allocation search",
    ],
)
def test_calibrate_writes_a_router_that_serves_what_the_record_says(files, tmp_path, capsys, who):
    out, record_file = tmp_path / "router", tmp_path / "record.json"
    assert (
        calibrate(
            files,
            "--budget",
            "0.4",
            "--router",
            *who.split(),
            "--out",
            str(out),
            "--record",
            str(record_file),
        )
        == 0
    )
    printed = capsys.readouterr().out
    record = json.loads(record_file.read_text())
    assert record["kind"] == "calibration" and record["hardware"]["cpu"] and record["documents"] == 10
    for arm in record["arms"].values():
        assert arm["title"] in printed and f"{arm['loss']:.4f}" in printed
    assert list(record["arms"]) == ["dense", "routed", *TABLE]
    assert len(record["static"]["greedy"]) == 2
    asked = 0.5 if "search" in who else 0.4  # a program skips whole layers
    assert sum(site["rate"] for site in record["sites"].values()) / 4 == pytest.approx(asked)

    model, tokenizer = load_routed(out)
    ids = tokenizer("the router reads a state and decides which tokens run", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        with executed(model, "masked"):
            masked = model(ids).logits
        with executed(model, "sparse"):
            sparse = model(ids).logits
    torch.testing.assert_close(sparse, masked, rtol=1e-4, atol=1e-4)
    assert 0 < last_decision(model).mean_rate() < 1
    text = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert text.shape[1] == ids.shape[1] + 5
    check_commands_on_router_folder(files, out, record, capsys)


def check_commands_on_router_folder(files, out, record, capsys):
    """`evaluate` and `generate` open a router folder, and the routes are those of the router."""
    data = ["--data", str(files / "heldout.jsonl"), "--sequence-length", "32", "--json"]
    assert main(["evaluate", str(out), *data]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["routing"]["paths"] == ["skip", "run"]
    assert 1 - evaluated["routing"]["mean_rate"] == pytest.approx(
        record["arms"]["routed"]["skipped"], abs=0.1
    )
    assert evaluated["loss"] == pytest.approx(record["arms"]["routed"]["loss"], abs=0.2)
    assert main(["generate", str(out), "the router reads", "--max-new-tokens", "4", "--json"]) == 0
    generated = json.loads(capsys.readouterr().out)
    assert generated["routing"]["sites"] == evaluated["routing"]["sites"]
    assert len(generated["routing"]["choice"]) == len(generated["tokens"]) - 1


def test_a_calibration_that_is_cut_off_goes_on(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    words = ["--budget", "0.4", "--json"]
    with monkeypatch.context() as patch:
        every = cut_at_fit(patch, None)
        assert calibrate(files, *words) == 0
    whole = capsys.readouterr()
    assert "cut off" not in whole.err
    with monkeypatch.context() as patch:
        cut_at_fit(patch, len(every) - 2)
        with pytest.raises(Cut):
            calibrate(files, *words)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        again = cut_at_fit(patch, None)
        assert calibrate(files, *words) == 0
    resumed = capsys.readouterr()
    assert "goes on where the same calibration was cut off" in resumed.err
    assert 2 <= len(again) < len(every) / 2
    one, other = (json.loads(printed.out) for printed in (whole, resumed))
    for part in ("arms", "static", "sites", "rounds"):
        assert one[part] == other[part]
    assert not list((tmp_path / "cache" / "unfinished").iterdir())


def test_a_model_that_does_not_fit_is_read_layer_by_layer(files, tmp_path, capsys, monkeypatch):
    """Of the bytes that layer by layer takes, and of fewer."""
    monkeypatch.setenv("LAYERROUTE_CACHE", str(tmp_path / "cache"))
    words = ["--budget", "0.4", "--json"]
    assert calibrate(files, *words) == 0
    whole = capsys.readouterr()
    assert "of memory at most" in whole.err
    needed = []
    estimate = memory.memory_needed

    def noted(*args, **options):
        needed.append(estimate(*args, **options))
        return needed[-1]

    monkeypatch.setattr(memory, "memory_needed", noted)
    monkeypatch.setattr(devices, "memory_free", lambda device: needed[-1].total)
    assert calibrate(files, *words) == 0
    streamed = capsys.readouterr()
    assert "its layers are read from its files" in streamed.err
    one, other = (json.loads(printed.out) for printed in (whole, streamed))
    for part in ("arms", "static", "sites", "rounds"):
        assert one[part] == other[part]
    assert not list((tmp_path / "cache" / "unfinished").iterdir()), (
        "a calibration that is done needs no notes"
    )
    monkeypatch.setattr(devices, "memory_free", lambda device: needed[-1].total - 1)
    assert calibrate(files, *words) == 2
    told = capsys.readouterr().err.strip()
    assert "--stream always" in told and "\n" not in told


@pytest.mark.parametrize("unit", ["attention+mlp", "mlp"])
def test_parts_of_layers_are_calibrated_with_their_controls(files, tmp_path, capsys, unit):
    out, record_file = tmp_path / "router", tmp_path / "record.json"
    words = ["--budget", "0.4", "--unit", unit, "--out", str(out), "--controls", "--record", str(record_file)]
    assert calibrate(files, *words) == 0
    printed = capsys.readouterr().out
    record = json.loads(record_file.read_text())
    assert record["run"] == f"calibrate-{unit}-40" and record["recipe"]["unit"] == unit
    assert f"budget 40% of {unit}" in printed
    pruned = ", ".join(map(str, record["static"]["greedy"]))
    of = {"attention+mlp": "halves of layers", "mlp": "the MLP of layers"}[unit]
    assert f"static prune by greedy takes out {of} {pruned}\n" in printed
    layers = ", ".join(map(str, record["static"]["block_greedy"]))
    assert f"static prune of whole layers by greedy takes out layers {layers}\n" in printed
    parts, layers = unit.split("+"), (2, 3, 4, 5)
    sites = [f"{layer}.{part}" for layer in layers for part in parts] if len(parts) > 1 else list("2345")
    assert list(record["sites"]) == sites and set(map(str, record["static"]["greedy"])) < set(sites)
    skipping = [site["rate"] for site in record["sites"].values()]
    assert sum(skipping) / len(skipping) == pytest.approx(0.4)
    for part, rate in zip(parts, skipping, strict=False):
        assert f"{rate:.0%} at every {part if len(parts) > 1 else 'layer'}" in printed
    for name in ("routed", *CONTROLS):
        arm = record["arms"][name]
        model, tokenizer = load_routed(arm_folder(out, name))
        router = get_router(model)
        own = ["block"] if "block" in name else parts
        assert router.sites == tuple(f"layer{layer}.{part}" for layer in layers for part in own)
        assert set(router.skip_paths) == {site.replace(".", "_") for site in router.sites}
        assert any(path.up.any() for path in router.skip_paths.values()), "fitted where tokens skip"
        ids = tokenizer("the router reads a state and decides which tokens run", return_tensors="pt")[
            "input_ids"
        ]
        text = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert text.shape[1] == ids.shape[1] + 5
        assert 0 < arm["skipped"] < 0.6
    check_commands_on_router_folder(files, out, record, capsys)


def test_kinds_of_text_are_named_and_mixed(files, tmp_path, capsys):
    out = tmp_path / "router"
    data = ["--data", f"a:3={files / 'train.jsonl'}", "--data", f"b={files / 'heldout.jsonl'}"]
    sizes = ["--length", "32", "--tokens-statistics", "512", "--tokens-selection", "128", "--rank", "4"]
    words = [
        *data,
        *sizes,
        "--tokens-heldout",
        "256",
        *LAYERS,
        "--budget",
        "0.4",
        "--out",
        str(out),
        "--json",
    ]
    assert main(["calibrate", str(files / "model"), *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert {name: kind["share"] for name, kind in record["data"]["kinds"].items()} == {"a": 0.75, "b": 0.25}
    assert record["data"]["source"] == "a: files train.jsonl; b: files heldout.jsonl"
    assert read_router(out).notes["kinds"] == record["data"]["kinds"]
    evaluated = [
        "--data",
        f"a={files / 'train.jsonl'}",
        f"b={files / 'heldout.jsonl'}",
        "--sequence-length",
        "32",
    ]
    assert main(["evaluate", str(out), *evaluated, "--sequences", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    losses = [kind["loss"] for kind in found["kinds"].values()]
    assert list(found["kinds"]) == ["a", "b"] and losses[0] != losses[1]
    assert found["mean"]["loss"] == pytest.approx(sum(losses) / 2)
    assert main(["evaluate", str(out), "--data", str(files / "heldout.jsonl"), "--sequence-length", "32",
                 "--sequences", "8", "--json"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["loss"] == losses[1], "a kind is scored as if it were alone"
    assert (
        main(["evaluate", str(out), *evaluated, "--sequences", "8", "--out", str(tmp_path / "scores")]) == 0
    )
    assert "mean of the kinds" in capsys.readouterr().out
    lines = (tmp_path / "scores" / "windows.csv").read_text().splitlines()
    assert lines[0] == "kind,window,loss" and len(lines) == 17


def test_two_calibrations_are_the_same(files, capsys):
    losses = []
    for _ in range(2):
        assert calibrate(files, "--budget", "0.3", "--json") == 0
        losses.append(
            {name: arm["loss"] for name, arm in json.loads(capsys.readouterr().out)["arms"].items()}
        )
    assert losses[0] == losses[1]


def test_further_budgets_are_told_as_the_folder_serves_them(files, tmp_path, capsys):
    out, record_file = tmp_path / "router", tmp_path / "record.json"
    words = ["--budget", "0.4", "--also", "0.2", "--out", str(out), "--record", str(record_file)]
    assert calibrate(files, *words) == 0
    printed = capsys.readouterr().out
    record = json.loads(record_file.read_text())
    (told,) = record["budgets"].values()
    (line,) = [line.split() for line in printed.splitlines() if "at budget 20%" in line]
    assert line[3] == f"{told['skipped']:.1%}" and line[5] == f"{told['loss']:.4f}"
    assert told["saved"] < record["arms"]["routed"]["saved"]
    model, tokenizer = load_routed(out, budget=0.2)
    heldout = draw_windows(
        Texts(parse_kinds([str(files / "heldout.jsonl")])).documents,
        tokenizer,
        tokens=320,
        length=32,
        seed=44,
    )
    precision = choose_precision("auto", torch.device("cpu")).name
    assert score(model, heldout.ids, precision=precision).loss == pytest.approx(told["loss"], abs=1e-5)


def test_headroom_tells_before_anything_is_calibrated(files, capsys):
    data = ["--data", str(files / "train.jsonl")]
    assert (
        main(["headroom", str(files / "model"), *data, *SIZES, *LAYERS, "--budgets", "0.25", "0.5", "--json"])
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert [row["budget"] for row in record["rows"]] == [0.25, 0.5]
    for row in record["rows"]:
        assert row["influence"]["skipped"] == pytest.approx(row["budget"], abs=0.02)
        assert row["gap"]["low"] <= row["gap"]["mean"] <= row["gap"]["high"]
    assert "er-token routing" in record["verdict"] and "equal executed FLOPs" in record["verdict"]
    assert main(["headroom", str(files / "model"), *data, *SIZES, *LAYERS, "--budgets", "0.25"]) == 0
    assert "influence - static" in capsys.readouterr().out
    words = [*data, *SIZES, *LAYERS, "--budgets", "0.25", "--unit", "attention"]
    assert main(["headroom", str(files / "model"), *words]) == 0
    printed = capsys.readouterr().out
    assert "with decisions about attention by known influence" in printed
    assert "taking the attention of layers out" in printed


def test_nothing_is_judged_on_copies_of_what_was_calibrated_on(files, tmp_path, capsys):
    """In another file, under another name, among other documents."""
    lines = (files / "train.jsonl").read_text().splitlines()
    other = (files / "heldout.jsonl").read_text().splitlines()
    (tmp_path / "copies.jsonl").write_text("\n".join([*lines[:9], *other[:2]]))
    words = [
        "calibrate",
        str(files / "model"),
        "--data",
        str(files / "train.jsonl"),
        "--budget",
        "0.4",
        *LAYERS,
    ]
    words += ["--heldout", str(tmp_path / "copies.jsonl"), *SIZES, "--tokens-heldout", "320"]
    assert main(words) == 2
    assert "has 3 documents of at least 32 tokens among 3 left, and 10 are needed" in capsys.readouterr().err
