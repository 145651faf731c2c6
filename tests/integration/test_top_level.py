"""The top level as a stranger uses it: the examples of its docstrings run, and what is returned is what is told."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import layerroute
from layerroute.cli.main import main
from layerroute.errors import UserError
from layerroute.skipping.calibration import TABLE
from tests.stand_in import stand_in_for_smollm2, write_stand_in
from tests.unit.lab.record_factory import make_run, sites

NAMES = [name for name in layerroute.EXPORTS if callable(getattr(layerroute, name))]
WITHOUT_EXAMPLE = {
    # Classes are told where they are used, and the hub cannot be reached from a test.
    *("Calibration", "HybridConfig", "HybridForCausalLM", "RouteDecision", "SkipConfig", "UserError"),
    "push_to_hub",
}


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture
def smollm2(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``smollm2-135m`` is tiny, and the working folder is empty but for two runs."""
    stand_in_for_smollm2(monkeypatch, stand_in)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "baseline")
    make_run(tmp_path / "runs", "dynamic", rates=sites(0.5, 0.4))
    return tmp_path


@pytest.fixture
def calibrated(smollm2: Path) -> layerroute.Calibration:
    model, tokenizer = layerroute.load("smollm2-135m")
    return layerroute.calibrate(
        model, tokenizer, budget=0.3, data="python-docs", tokens=1024, rank=4, length=64, progress=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_examples_of_docstrings_run(name: str, smollm2: Path) -> None:
    found = doctest.DocTestFinder(recurse=False).find(
        getattr(layerroute, name), name, globs={"layerroute": layerroute}
    )
    examples = [test for test in found if test.examples]
    assert bool(examples) == (name not in WITHOUT_EXAMPLE)
    for test in examples:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        assert runner.run(test).failed == 0, name


@pytest.mark.slow
def test_a_calibration_tells_what_it_made(calibrated: layerroute.Calibration, smollm2: Path) -> None:
    frame = pd.DataFrame(calibrated.table)
    assert list(frame["arm"][:2]) == ["full depth", "routed per token"] and len(frame) == 2 + len(TABLE)
    routed = calibrated.table[1]
    assert calibrated.cost == pytest.approx(routed["above_full"])
    assert 0 < calibrated.skipped < 0.5
    text = str(calibrated)
    assert text.startswith("smollm2-135m, budget 30% of mlp") and text.endswith(calibrated.verdict)
    assert f"{routed['loss']:.4f}" in text
    assert len(calibrated.figure.axes[0].lines) > len(TABLE)
    page = calibrated._repr_html_()
    assert page.count("<tr>") == 1 + len(frame) and "<svg" in page and "routed per token" in page


@pytest.mark.slow
def test_what_is_saved_is_what_is_in_the_model(calibrated: layerroute.Calibration, smollm2: Path) -> None:
    model = calibrated.model
    _, tokenizer = layerroute.load("smollm2-135m")
    before = layerroute.generate(model, tokenizer, "the router reads", max_new_tokens=6)
    assert before.layers == 12 and len(before.layers_run) == len(before.tokens) - 1
    assert min(before.layers_run) < 12, "nothing is skipped: the test would show nothing"
    assert "\x1b[38;2;" in before.coloured and "<span" in before._repr_html_()
    folder = calibrated.save("router", controls=True)
    assert {path.name for path in (folder / "controls").iterdir()} == set(TABLE)
    after = layerroute.generate(model, tokenizer, "the router reads", max_new_tokens=6)
    again = layerroute.generate(*layerroute.load(folder), "the router reads", max_new_tokens=6)
    assert before.choice == after.choice == again.choice
    scores = [
        layerroute.evaluate(one, tokenizer, "python-docs", length=64, windows=4, progress=False)
        for one in (model, layerroute.load(folder)[0])
    ]
    assert (
        scores[0].loss == pytest.approx(scores[1].loss, abs=1e-5) and scores[0].skipped == scores[1].skipped
    )
    with layerroute.decisions(model) as collected:
        model(torch.tensor([[5, 6, 7]]))
    assert len(collected) == 1 and isinstance(collected[0], layerroute.RouteDecision)


@pytest.mark.slow
def test_windows_longer_than_the_model_reads_are_told(smollm2: Path) -> None:
    with pytest.raises(UserError, match=r"windows of 1000000 tokens are too long"):
        layerroute.evaluate(*layerroute.load("smollm2-135m"), "python-docs", length=1_000_000)


@pytest.mark.slow
def test_a_save_that_fails_leaves_the_routed_arm_on_the_model(
    calibrated: layerroute.Calibration, smollm2: Path
) -> None:
    """A control that stayed would be written as the router by the next save."""
    ids = torch.arange(5, 29).unsqueeze(0)
    before = calibrated.model(ids).logits
    (smollm2 / "full" / "controls").mkdir(parents=True)
    (smollm2 / "full" / "controls" / "random").write_text("in the place of a folder")
    with pytest.raises(FileExistsError):
        calibrated.save("full", controls=True)
    assert torch.equal(calibrated.model(ids).logits, before)
    again, _ = layerroute.load(calibrated.save("again"))
    assert torch.equal(again(ids).logits, before)


@pytest.mark.slow
def test_the_command_calls_the_same_function(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (smollm2 / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"the token {n} reads a state and decides " * 20}) for n in range(60))
    )
    words = ["--data", "text.jsonl", "--budget", "0.3", "--length", "32", "--rank", "4", "--json"]
    sizes = {"tokens_statistics": 512, "tokens_selection": 128, "tokens_search": 64, "tokens_heldout": 256}
    options = [word for key, size in sizes.items() for word in (f"--{key.replace('_', '-')}", str(size))]
    assert main(["calibrate", "smollm2-135m", *words, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    model, tokenizer = layerroute.load("smollm2-135m")
    rows = [json.loads(line) for line in (smollm2 / "text.jsonl").read_text().splitlines()]
    for data in ("text.jsonl", {"text": ["text.jsonl"]}, rows):
        made = layerroute.calibrate(
            model, tokenizer, data=data, budget=0.3, length=32, rank=4, progress=False, **sizes
        )
        assert made.record["arms"] == told["arms"] and made.record["recipe"] == told["recipe"]
        assert list(made.record) == list(told)
        layerroute.remove_router(model)


BAD = {
    "a router is there": (
        lambda m, t: layerroute.calibrate(layerroute.add_router(m), t),
        "has a router already",
    ),
    "no such setting": (lambda m, t: layerroute.calibrate(m, t, tokns=5), "calibration.tokns is not known"),
    "no such control": (
        lambda m, t: layerroute.calibrate(m, t, controls=["dense"]),
        "there is no control 'dense'",
    ),
    "no such file": (lambda m, t: layerroute.calibrate(m, t, data="nowhere.jsonl"), "nowhere.jsonl"),
    "no text in records": (
        lambda m, t: layerroute.evaluate(m, t, [{"body": "x"}]),
        "record 0 has no text under 'text'",
    ),
    "records without end": (lambda m, t: layerroute.evaluate(m, t, iter([{"text": "x"}])), "need a length"),
    "a number": (lambda m, t: layerroute.evaluate(m, t, 5), "not as int"),
    "no such model": (
        lambda m, t: layerroute.load("nobody/nothing"),
        "cannot load the model 'nobody/nothing'",
    ),
    "no router": (lambda m, t: layerroute.load("smollm2-135m", budget=0.3), "has no router"),
    "options of a router": (
        lambda m, t: layerroute.load(
            layerroute.save(layerroute.add_router(m), "router"), dtype="bfloat16", revision="x"
        ),
        "says itself how it is loaded; dtype, revision is for plain models",
    ),
    "no such device": (lambda m, t: layerroute.load("smollm2-135m", device="gpu"), "unknown device 'gpu'"),
    "no such precision": (
        lambda m, t: layerroute.evaluate(m, t, "text.jsonl", precision="fp8"),
        "unknown precision 'fp8'",
    ),
    "windows of one token": (
        lambda m, t: layerroute.evaluate(m, t, "text.jsonl", length=1),
        "length is 1; give 2 or more",
    ),
    "batches of none": (
        lambda m, t: layerroute.evaluate(m, t, "text.jsonl", batch_size=0),
        "batch_size is 0; give 1 or more",
    ),
    "no new token": (lambda m, t: layerroute.generate(m, t, "the", max_new_tokens=0), "give 1 or more"),
    "a cold temperature": (lambda m, t: layerroute.generate(m, t, "the", temperature=-1.0), "give 0 or more"),
    "granularity": (lambda m, t: layerroute.calibrate(m, t, granularity="token"), "is the argument router"),
    "no tokens": (lambda m, t: layerroute.calibrate(m, t, tokens=0), "tokens_statistics is 0, less than one"),
    "nothing to export": (lambda m, t: layerroute.export(m, "out"), "has no router"),
    "nothing to compare": (lambda m, t: layerroute.compare("nowhere"), "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(case: str, smollm2: Path) -> None:
    call, message = BAD[case]
    with pytest.raises(layerroute.UserError, match=message) as caught:
        call(*layerroute.load("smollm2-135m"))
    assert "\n" not in str(caught.value)


def test_a_plain_model_saved_over_a_router_is_what_is_there(smollm2: Path) -> None:
    model, tokenizer = layerroute.load("smollm2-135m")
    layerroute.save(layerroute.add_router(model), "folder")
    layerroute.save(layerroute.remove_router(model), "folder", tokenizer=tokenizer)
    assert not hasattr(layerroute.load("folder")[0], "layerroute")


def test_a_router_comes_back_from_the_hub(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = smollm2 / "hub"

    class Api:
        def create_repo(self, repo: str, **options: object) -> None:
            assert options["private"] is True

        def upload_folder(self, *, folder_path: str, repo_id: str) -> str:
            Path(folder_path).rename(hub)
            return f"https://hub/{repo_id}"

    def download(name: str, file: str = "") -> str:
        if name != "me/router":
            raise OSError("no such repository")
        return str(hub / file)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model, _ = layerroute.load("smollm2-135m")
    assert layerroute.push_to_hub(layerroute.add_router(model), "me/router") == "https://hub/me/router"
    again, _ = layerroute.load("me/router")
    assert again.layerroute.sites == model.layerroute.sites


def test_a_router_of_a_local_base_is_not_pushed(smollm2: Path, stand_in: Path) -> None:
    model, _ = layerroute.load(stand_in)
    with pytest.raises(layerroute.UserError, match="the base of this router is a folder of this machine"):
        layerroute.push_to_hub(layerroute.add_router(model), "me/router")
