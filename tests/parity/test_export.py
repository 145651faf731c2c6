"""An exported folder gives the logits of the model that it was made from, and what cannot be exported is refused."""

import json
import os
import pickle
import subprocess
import sys
from argparse import Namespace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import layerroute.exporting.export as exporting
from layerroute.benchmark.engine import Engines
from layerroute.errors import UserError
from layerroute.evaluation.loading import load_model
from layerroute.exporting.configuration import VLLM_FAMILIES
from layerroute.exporting.export import export_router, push
from layerroute.routing import RoutingConfig
from layerroute.skipping import SkipConfig, add_router, get_router, last_decision, save_router
from tests.parity.contracts import tokens
from tests.parity.skipping_models import DEFAULTS, FAMILIES, VOCABULARY, plain, sharpen
from tests.tiny_pretrained import write_documents, write_tokenizer

PER_LAYER = {"granularity": "per_layer", "routing": RoutingConfig(router="linear", rate=0.6)}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


@torch.no_grad()
def logits(model):
    return model(tokens(2, 11, VOCABULARY), use_cache=False).logits


def make(tmp_path, family="llama", lora=False, base_config=None, **skip):
    """A router folder beside its base, and the logits of the two together."""
    base = tmp_path / "base"
    plain(family, **(base_config or {})).save_pretrained(base)
    write_documents(tmp_path, {"text": 3}, 40)
    write_tokenizer(base, tmp_path / "text.jsonl")
    model = AutoModelForCausalLM.from_pretrained(base)
    add_router(model, SkipConfig(**DEFAULTS | skip))
    sharpen(model)
    with torch.no_grad():
        for routing in get_router(model).all_routings():
            routing.thresholds.value.fill_(0.3)
    if lora:
        torch.manual_seed(5)
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data.normal_(std=0.2)
    model = model.eval()
    save_router(
        model, tmp_path / "router", notes={"calibration": {"budget": 0.4}, "model": {"dtype": "float32"}}
    )
    return tmp_path / "router", logits(model)


def opened(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_source(family, tmp_path):
    router, expected = make(tmp_path, family, **PER_LAYER)
    made = export_router(router, tmp_path / "out", to="hf")
    again = opened(made.folder)
    assert torch.equal(logits(again), expected)
    assert 0 < last_decision(again).mean_rate() < 1
    assert AutoTokenizer.from_pretrained(made.folder).encode("the router")
    # What it saves opens again: it is a model like others.
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(opened(tmp_path / "again")), expected)


@pytest.mark.parametrize(
    "skip",
    [
        {},
        {"unit": "mlp", "sink_ids": [5]},
        {"unit": "attention", "skip_path": "identity"},
        {"unit": "attention+mlp", "kv": "evict"},
        {"granularity": "sequence", "prefix_tokens": 3},
        {"granularity": "per_layer", "history": 2, "skip_path": "non_linear"},
        {"serve": "rate"},
        {"routing": RoutingConfig(control="random", rate=0.5)},
        {"routing": RoutingConfig(control="static", control_sites=[0, 3])},
    ],
    ids=str,
)
def test_kinds_of_router(skip, tmp_path):
    router, expected = make(tmp_path, **skip)
    made = export_router(router, tmp_path / "out", to="hf")
    assert not made.plain
    model = opened(made.folder)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)  # for another process


def test_commands_open_an_export_as_they_open_a_router(tmp_path):
    router, expected = make(tmp_path)
    loaded = load_model(export_router(router, tmp_path / "out", to="vllm").folder, device="cpu")
    assert torch.equal(logits(loaded.model), expected)
    assert (loaded.serve, loaded.precision) == ("threshold", "fp32")


def test_adapters_are_merged(tmp_path):
    router, expected = make(tmp_path, lora=True)
    folder = export_router(router, tmp_path / "out", to="hf").folder
    assert not [name for name in load_file(folder / "model.safetensors") if "lora" in name]
    torch.testing.assert_close(logits(opened(folder)), expected, atol=1e-3, rtol=1e-4)


def test_routers_stay_in_fp32(tmp_path):
    router, _ = make(tmp_path)
    folder = export_router(router, tmp_path / "out", to="hf", dtype="bfloat16").folder
    model = opened(folder)
    kinds = {name.startswith("layerroute."): value.dtype for name, value in model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_a_chosen_budget_is_the_exports_own(tmp_path):
    rates = {"0.3": [0.7] * 4, "0.6": [0.4] * 4}
    router, _ = make(tmp_path, **PER_LAYER, budgets=rates)
    weights = load_file(router / "router.safetensors")
    weights["budgets.thresholds"] = torch.tensor([[-8.0] * 4, [8.0] * 4])
    save_file(weights, router / "router.safetensors")
    shares = {}
    for budget in (0.3, 0.6):
        folder = export_router(router, tmp_path / str(budget), to="hf", budget=budget).folder
        assert f"| share of routed compute asked to skip | {budget} |" in (folder / "README.md").read_text()
        model = opened(folder)
        logits(model)
        shares[budget] = float(last_decision(model).mean_rate())
    assert shares[0.3] > shares[0.6]


STATIC = {
    "skip_path": "identity",
    "sink_tokens": 0,
    "routing": RoutingConfig(control="static", control_sites=[1, 2]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dense", [{}, {"mlp_only_layers": [5]}, {"decoder_sparse_step": 2}], ids=str)
def test_layers_that_are_left_are_the_same_when_they_are_opened(family, dense, tmp_path):
    if dense and "num_experts" not in FAMILIES[family]:
        pytest.skip("it has no experts in some layers alone")
    model = plain(family, eos_token_id=list(range(7)), **dense)
    exporting.drop_layers(model, [2])
    model.save_pretrained(tmp_path)
    reopened, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    torch.testing.assert_close(logits(reopened.eval()), logits(model), atol=1e-5, rtol=1e-5)
    assert model.config.eos_token_id == list(range(7))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "smollm3"])
def test_layers_that_nobody_runs_are_gone(family, tmp_path):
    router, expected = make(tmp_path, family, **STATIC)
    made = export_router(router, tmp_path / "out", to="hf")
    assert (made.plain, made.layers) == (True, (7, 5))
    code = (
        "import sys, torch, transformers\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(made.folder)!r}).eval()\n"
        "assert 'layerroute' not in sys.modules\n"
        f"torch.save(model(torch.load({str(tmp_path / 'ids.pt')!r}), use_cache=False).logits, sys.argv[1])\n"
    )
    torch.save(tokens(2, 11, VOCABULARY), tmp_path / "ids.pt")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "logits.pt")], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=1e-5)


def test_transformers_alone_does_not_serve_a_router_at_full_depth(tmp_path):
    router, _ = make(tmp_path)
    folder = export_router(router, tmp_path / "out", to="hf").folder
    code = f"import transformers; transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert "layerroute" in told.stderr


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in VLLM_FAMILIES])
def test_vllm_refuses_families_that_the_plugin_does_not_serve(family, tmp_path):
    router, _ = make(tmp_path, family)
    with pytest.raises(UserError, match=f"family '{family}'"):
        export_router(router, tmp_path / "out", to="vllm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("skip", "named"),
    [
        ({"granularity": "sequence"}, "granularity: sequence"),
        ({"granularity": "batch"}, "granularity: batch"),
        ({"kv": "evict"}, "kv: evict"),
        ({"granularity": "per_layer", "history": 2}, "history: 2"),
    ],
)
def test_vllm_refuses_routers_that_the_plugin_does_not_serve(skip, named, tmp_path):
    layers = {"layers": [2, 3, 4]} if skip.get("granularity") == "batch" else {}
    router, _ = make(tmp_path, **skip, **layers)
    with pytest.raises(UserError, match=named):
        export_router(router, tmp_path / "out", to="vllm")


@pytest.mark.parametrize("family", VLLM_FAMILIES)
def test_vllm_finds_our_architecture_and_the_router(family, tmp_path):
    whole = {"use_sliding_window": False, "layer_types": None} if family == "qwen2" else None
    router, _ = make(tmp_path, family, base_config=whole, unit="mlp")
    made = export_router(router, tmp_path / "out", to="vllm")
    config = AutoConfig.from_pretrained(made.folder)
    assert config.architectures == [f"Routed{VLLM_FAMILIES[family]}ForCausalLM"]
    assert SkipConfig.from_dict(config.layerroute["skip"]).unit == "mlp"
    assert config.model_type == family  # all that vLLM does for the family is done
    sent = pickle.loads(pickle.dumps(config))  # to vLLM's workers
    assert type(sent) is type(config)
    assert sent.to_dict() == config.to_dict()


def test_windows_that_vllm_does_not_have_are_refused(tmp_path):
    router, _ = make(tmp_path, "qwen2", unit="mlp")
    with pytest.raises(UserError, match="sliding windows"):
        export_router(router, tmp_path / "out", to="vllm")


@pytest.mark.parametrize("by_path", [False, True])
def test_an_empty_folder_may_be_where_the_shell_stands(by_path, tmp_path, monkeypatch):
    router, _ = make(tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    first = exporting.card

    def looked_at(**facts):  # nothing is written beside it, where perhaps nothing may be
        assert not list(tmp_path.glob(".exporting-*"))
        return first(**facts)

    monkeypatch.setattr(exporting, "card", looked_at)
    export_router(router, tmp_path / "out" if by_path else ".", to="hf")
    opened(".")
    assert os.path.samefile(".", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]


def test_two_exports_at_once_do_not_end_in_each_other(tmp_path, monkeypatch):
    router, _ = make(tmp_path)
    first = exporting.card

    def late(**facts):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("of another process")
        return first(**facts)

    monkeypatch.setattr(exporting, "card", late)
    with pytest.raises(UserError, match="holds something"):
        export_router(router, tmp_path / "out", to="hf")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_bad_input_is_named(tmp_path):
    router, _ = make(tmp_path)
    with pytest.raises(UserError, match=r"no engine 'vlm'.*vllm"):
        export_router(router, tmp_path / "out", to="vlm")
    with pytest.raises(UserError, match="holds something already"):
        export_router(router, tmp_path, to="hf")
    plain("llama", seed=3).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="not that base's"):
        export_router(router, tmp_path / "out", to="hf")
    content = json.loads((router / "router.json").read_text())
    content["notes"]["model"] = {"quantization": "nf4"}
    (router / "router.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="nf4 weights"):
        export_router(router, tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda section: section.update(guard={"share": 0.1}), "layerroute.guard"),
        (lambda section: section.pop("base"), "layerroute.base"),
        (lambda section: section["skip"].update(depth=3), "skip.depth"),
        (lambda section: section.update(format=9), "export format 9"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(change, named, tmp_path):
    router, _ = make(tmp_path)
    folder = export_router(router, tmp_path / "out", to="hf").folder
    config = json.loads((folder / "config.json").read_text())
    change(config["layerroute"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=named):
        opened(folder)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    router, _ = make(tmp_path)
    folder = export_router(router, tmp_path / "out", to="hf").folder
    weights = load_file(folder / "model.safetensors")
    del weights["layerroute.routings.0.thresholds.value"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks layerroute.routings.0.thresholds.value"):
        opened(folder)


def test_the_card_tells_facts(tmp_path):
    router, _ = make(tmp_path)
    text = (export_router(router, tmp_path / "out", to="vllm").folder / "README.md").read_text()
    for fact in ("| unit | block |", "| calibration.budget | 0.4 |", "layerroute serve --engine vllm"):
        assert fact in text
    assert str(tmp_path) not in text
    assert "base_model:" not in text


def test_push_uploads_the_folder_or_says_why_not(tmp_path, monkeypatch):
    calls = []
    raised: Exception

    class Api:
        def create_repo(self, repo, **options):
            calls.append((repo, options["private"]))

        def upload_folder(self, *, folder_path, repo_id):
            if repo_id == "nobody/x":
                raise raised
            return f"{repo_id}:{folder_path}"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(tmp_path, "me/x") == f"me/x:{tmp_path}"
    assert calls == [("me/x", True)]

    class OfSomeClient(Exception):
        """Neither an OSError nor of the hub's own, as httpx2's are."""

    for one in (OSError("no network"), OfSomeClient("no network"), ValueError("no network")):
        raised = one
        with pytest.raises(UserError, match="cannot be pushed to nobody/x: no network"):
            push(tmp_path, "nobody/x")


def test_the_engines_bench_has_the_same_weights_without_a_router_and_without_layers(tmp_path):
    router, _ = make(tmp_path)
    made = export_router(router, tmp_path / "out", to="vllm")
    engines = Engines(Namespace(export=made.folder))
    folder, unit, layers = engines._plain
    assert (unit, layers) == ("block", [2, 3, 4, 6])
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(logits(opened(folder)), logits(opened(tmp_path / "base")))
    fewer = opened(engines._fewer(folder, layers, 2)).config.num_hidden_layers
    assert fewer == opened(folder).config.num_hidden_layers - 2
