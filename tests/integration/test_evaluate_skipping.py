"""`layerroute evaluate`, `generate` and `inspect` on router folders: what they tell, and what they refuse."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerroute.cli.main import main
from layerroute.evaluation.loading import load_model
from layerroute.evaluation.perplexity import evaluate
from layerroute.skipping import SkipConfig, add_router, get_router, load_pretrained, save_router
from tests.parity.skipping_models import sharpen
from tests.tiny_pretrained import write_documents, write_pretrained

LAYERS = 7
ROUTED = {
    "layers": [2, 3, 4, 5],
    "router_layer": 2,
    "rank": 4,
    "sink_tokens": 1,
    "execution": "sparse",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base, text, and routers for the base: of one budget, of several, and with an adapter."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_documents(folder, {"text": 12}, length=70)
    write_pretrained(folder / "model", folder / "text.jsonl", num_hidden_layers=LAYERS)
    budgets = {"0.25": [0.9, 0.8, 0.7, 0.6], "0.5": [0.7, 0.6, 0.4, 0.3]}
    for name, settings in (("one", {}), ("many", {"budgets": budgets}), ("adapted", {})):
        model, _ = load_pretrained(str(folder / "model"))
        add_router(model, SkipConfig(**ROUTED, **settings))
        sharpen(model)
        if name == "many":
            router = get_router(model)
            for budget, threshold in ((0.25, 0.0), (0.5, 1e9)):  # the second lets nobody run
                router.set_budget(budget)
                router.all_routings()[0].thresholds.value.fill_(threshold)
                router.store_thresholds()
            router.set_budget(0.25)
        if name == "adapted":
            from peft import LoraConfig

            model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
        save_router(model, folder / name, notes={"model": {"dtype": "float32"}})
    return folder


def run(capsys, *words):
    """Exit code and what was printed."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, capsys.readouterr()


def scores(capsys, files, router, *more):
    data = ["--data", files / "text.jsonl", "--sequence-length", "32"]
    code, printed = run(capsys, "evaluate", files / router, *data, *more, "--json")
    assert code == 0, printed.err
    found = json.loads(printed.out)
    return {key: value for key, value in found.items() if key != "seconds"}


def test_evaluate_tells_layers_skips_and_flops_and_twice_the_same(files, capsys):
    found = scores(capsys, files, "one")
    assert found == scores(capsys, files, "one")
    rates = found["routing"]["rate"]
    assert 0.05 < found["routing"]["mean_rate"] < 0.95
    by_layer = found["layers"]["by_layer"]["block"]
    assert by_layer == [rates.get(f"layer{layer}.block", 1.0) for layer in range(LAYERS)]
    assert found["layers"]["run_per_token"]["block"] == pytest.approx(LAYERS - 4 + sum(rates.values()))
    assert found["routing"]["skipped"] == pytest.approx(1 - sum(rates.values()) / 4)
    flops = found["flops"]
    assert flops["executed_per_token"] < 0.97 * flops["full_depth_per_token"]
    assert flops["windows"] > 8
    data = ["--data", files / "text.jsonl", "--sequence-length", "32"]
    code, printed = run(capsys, "evaluate", files / "one", *data)
    assert code == 0
    for word in (
        "perplexity",
        "accuracy",
        "layer5.block",
        "of 7 by each token",
        "of routed compute",
        "MFLOPs",
    ):
        assert word in printed.out, word
    assert f"{found['layers']['run_per_token']['block']:.2f} of 7" in printed.out


def test_the_rate_is_held_where_that_is_asked_for(files, capsys):
    """Thresholds of this router were never set to its rate; the text is short, and each window a sequence."""
    by_threshold, held = (
        scores(capsys, files, "one", "--serve", word, "--sequence-length", "128")
        for word in ("threshold", "rate")
    )
    assert by_threshold == scores(capsys, files, "one", "--sequence-length", "128")
    assert (by_threshold["serve"], held["serve"]) == ("threshold", "rate")
    assert held["routing"]["skipped"] == pytest.approx(0.25, abs=0.02)
    assert abs(by_threshold["routing"]["skipped"] - 0.25) > 0.03
    words = [files / "one", "the a", "--max-new-tokens", 3, "--json"]
    assert run(capsys, "generate", *words, "--serve", "rate")[0] == 0
    code, printed = run(capsys, "inspect", files / "one", "--text", "the a", "--json", "--serve", "rate")
    assert code == 0 and json.loads(printed.out)["sites"]


def test_at_full_depth_it_is_the_base(files, capsys):
    found = scores(capsys, files, "one", "--full-depth")
    assert found["routing"] is None and found["layers"] is None
    flops = found["flops"]
    assert flops["executed_per_token"] == pytest.approx(flops["full_depth_per_token"], rel=0.02)
    assert found["loss"] != scores(capsys, files, "one")["loss"]
    model, tokenizer = load_pretrained(str(files / "model"))
    texts = [json.loads(line)["text"] for line in (files / "text.jsonl").read_text().splitlines()]
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    windows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    rest = torch.tensor(ids[len(windows) * 32 :]).view(1, -1)
    batches = [{"input_ids": part} for part in windows.split(8)]
    if rest.shape[1] > 1:
        batches.append({"input_ids": rest})
    assert evaluate(model, batches).loss == pytest.approx(found["loss"], abs=1e-9)


def test_the_execution_can_be_chosen_and_is_told(files, capsys, tmp_path):
    found = {word: scores(capsys, files, "one", "--execution", word) for word in ("sparse", "masked", "auto")}
    assert {word: content["execution"] for word, content in found.items()} == {word: word for word in found}
    assert found["sparse"] == scores(capsys, files, "one"), "the configuration of these routers says sparse"
    sparse, masked = found["sparse"], found["masked"]
    assert sparse["routing"] == masked["routing"]
    assert sparse["loss"] == pytest.approx(masked["loss"], abs=1e-5)
    assert sparse["flops"]["executed_per_token"] < 0.97 * masked["flops"]["executed_per_token"]
    # Masked execution computes everything, and the router and the skip paths besides.
    assert masked["flops"]["executed_per_token"] > masked["flops"]["full_depth_per_token"]
    words = ["evaluate", files / "one", "--data", files / "text.jsonl", "--sequence-length", "32"]
    code, printed = run(capsys, *words, "--execution", "masked", "--out", tmp_path / "scores")
    assert code == 0 and "windows, masked execution)" in printed.out
    content = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert content["execution"] == "masked" and content["loss"] == masked["loss"]
    rows = [line.split(",") for line in (tmp_path / "scores" / "windows.csv").read_text().splitlines()]
    assert rows[0] == ["window", "loss"] and len(rows) > 9
    assert [row[0] for row in rows[1:]] == [str(n) for n in range(len(rows) - 1)]


def test_there_is_no_execution_to_choose_where_nothing_is_routed(files, capsys):
    words = ["evaluate", files / "one", "--data", files / "text.jsonl", "--sequence-length", "32"]
    code, printed = run(capsys, *words, "--full-depth", "--execution", "sparse")
    assert code == 2 and "routes nothing, so that there is no execution to choose" in printed.err
    code, printed = run(capsys, *words, "--execution", "fast")
    assert code == 2 and "sparse" in printed.err


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_rate_nor_loss(files, side):
    model = load_model(files / "one").model
    torch.manual_seed(0)
    ids = torch.randint(5, 280, (3, 24))
    plain = evaluate(model, [{"input_ids": row.view(1, -1)} for row in ids])
    pad = (9, 0) if side == "left" else (0, 9)
    padded = torch.nn.functional.pad(ids, pad, value=0)
    mask = torch.nn.functional.pad(torch.ones_like(ids), pad, value=0)
    found = evaluate(model, [{"input_ids": padded, "attention_mask": mask}])
    assert found.routing.rate == plain.routing.rate
    assert found.routing.tokens == plain.routing.tokens == ids.numel()
    assert found.loss == pytest.approx(plain.loss, abs=1e-5) and found.tokens == plain.tokens


def test_a_budget_is_chosen_at_load(files, capsys):
    least = scores(capsys, files, "many")
    most = scores(capsys, files, "many", "--budget", "0.5")
    assert least == scores(capsys, files, "many", "--budget", "0.25")
    # All skip but the first token of each window, the sink.
    assert least["routing"]["skipped"] < 0.9 < most["routing"]["skipped"]


def test_generate_times_the_routed_model_in_turn_with_full_depth(files, capsys):
    words = ["generate", files / "one", "the router reads", "--max-new-tokens", "6", "--time", "2"]
    code, printed = run(capsys, *words, "--json")
    assert code == 0, printed.err
    timed = json.loads(printed.out)["timed"]
    assert timed["new_tokens"] == 6 and timed["rounds"] == 2
    speeds = timed["tokens_per_second"]
    assert set(speeds) == {"routed", "full depth"} and min(speeds.values()) > 0
    assert timed["speedup"]["minimum"] <= timed["speedup"]["median"] <= timed["speedup"]["maximum"]
    code, printed = run(capsys, *words, "--show-routes")
    assert code == 0 and "rounds in turn" in printed.err and "tokens/s" in printed.err


def test_inspect_shows_the_routes_of_a_router_folder(files, tmp_path, capsys):
    words = ["inspect", files / "one", "--text", "the router reads a state", "--out", tmp_path / "out"]
    code, printed = run(capsys, *words)
    assert code == 0 and "layer5.block" in printed.out
    assert any(path.suffix == ".html" for path in (tmp_path / "out").iterdir())


def copy_of(files, tmp_path, name="adapted"):
    return shutil.copytree(files / name, tmp_path / "copy")


def without(*path):
    def damage(files, tmp_path):
        copy = copy_of(files, tmp_path)
        copy.joinpath(*path).unlink()
        return copy

    return damage


def another_base(files, tmp_path):
    base = shutil.copytree(files / "model", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: value + 1 for name, value in weights.items()}, base / "model.safetensors", {"format": "pt"}
    )
    return _described(copy_of(files, tmp_path), lambda content: content["base"].update(id=str(base)))


def no_base(files, tmp_path):
    return _described(
        copy_of(files, tmp_path), lambda content: content["base"].update(id=str(tmp_path / "no"))
    )


def of_four_bits(files, tmp_path):
    return _described(
        copy_of(files, tmp_path), lambda content: content["notes"]["model"].update(quantization="nf4")
    )


def of_no_known_form(files, tmp_path):
    return _described(
        copy_of(files, tmp_path), lambda content: content["notes"].update(model={"dtype": "int3"})
    )


def asked_for_code(files, tmp_path):
    change = {"dtype": "float32", "trust_remote_code": True}
    return _described(copy_of(files, tmp_path), lambda content: content["notes"].update(model=change))


def _described(folder, change):
    content = json.loads((folder / "router.json").read_text())
    change(content)
    (folder / "router.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("command", ["evaluate", "generate", "inspect"])
@pytest.mark.parametrize(
    ("made", "told"),
    [
        (without("router.safetensors"), "router.safetensors is missing"),
        (without("adapter", "adapter_model.safetensors"), "adapter_model.safetensors is missing"),
        (without("router.json"), "holds no model"),
        (another_base, "was made for the base"),
        (no_base, "cannot load the model"),
        (of_four_bits, "pip install 'layerroute[quantization]'"),
        (of_no_known_form, "model.dtype is 'int3'"),
        (asked_for_code, "notes.model must name"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_nothing_takes_the_place_of_what_is_missing(
    files, tmp_path, capsys, monkeypatch, command, made, told
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = made(files, tmp_path)
    words = {
        "evaluate": ["--data", files / "text.jsonl"],
        "generate": ["the router"],
        "inspect": ["--text", "the router", "--out", tmp_path / "out"],
    }
    code, printed = run(capsys, command, folder, *words[command])
    lines = printed.err.strip().splitlines()
    assert code == 2 and len(lines) == 1, printed.err
    assert told in lines[0]
    assert not printed.out.strip()
