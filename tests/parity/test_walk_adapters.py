"""The walk of PEFT's methods: what is saved is equal after loading in another process, or is refused when saved."""

import json
import os
import subprocess
import sys
import warnings

import peft
import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping import SkipConfig, add_router, load_router, save_router
from layerroute.skipping.adapters import METHODS as SAVED
from layerroute.skipping.fingerprint import fingerprint
from layerroute.skipping.storage import restore_router
from tests.parity.adapter_table import METHODS, REFUSED
from tests.parity.contracts import tokens
from tests.parity.skipping_models import DEFAULTS, VOCABULARY, plain, routed, sharpen

IDS = tokens(2, 11, VOCABULARY)
STATES = {
    "one": (["default"], ["default"]),
    "named": (["my-own name"], None),
    "first of two": (["one", "two"], ["one"]),
    "second of two": (["default", "two"], ["two"]),
    "both": (["one", "two"], ["one", "two"]),
    "off": (["default", "two"], []),
}
ORDERS = ("adapter first", "without a PeftModel")
WAYS = [*(("router first", state) for state in STATES), *((order, "one") for order in ORDERS)]


def cases():
    """All methods in all ways; the plain run takes three ways of each, in turn, and the walk the others."""
    for number, method in enumerate(METHODS):
        for at, way in enumerate(WAYS):
            plain_run = at == 0 or (at + number) % 3 == 0
            yield pytest.param(
                (method, *way), marks=[] if plain_run else pytest.mark.walk, id="-".join((method, *way))
            )


def move(model, seed=3):
    """Give adapters, which begin as no-ops, something to do."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "layerroute" not in name:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))


def adapted(method, order, state):
    """A routed model with adapters of one method; None if PEFT itself does not do that."""
    kind, options = METHODS[method]
    names, active = STATES[state]
    torch.manual_seed(0)
    base = routed("llama") if order == "router first" else plain("llama")
    try:
        if order == "without a PeftModel":
            base.add_adapter(kind(**options))
            model = base
        else:
            model = peft.get_peft_model(base, kind(**options, task_type="CAUSAL_LM"), adapter_name=names[0])
        move(model)
        for name in names[1:]:
            model.add_adapter(name, kind(**options, task_type="CAUSAL_LM"))
            model.set_adapter(name)
            move(model, seed=4)
        if active == []:
            model.base_model.disable_adapter_layers()
        elif active is not None and order != "without a PeftModel":
            model.base_model.set_adapter(active)
        with torch.no_grad():
            model(IDS)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    if order != "router first":
        add_router(model, SkipConfig(**DEFAULTS))
        sharpen(model)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


LOADED = """
import copy, json, sys, warnings
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from layerroute.skipping import load_router
torch.set_num_threads(1)
warnings.simplefilter("ignore")
root, found = Path(sys.argv[1]), {}
plain = AutoModelForCausalLM.from_pretrained(root / "base")
for case in json.loads((root / "cases.json").read_text()):
    torch.manual_seed(99)
    base = copy.deepcopy(plain)
    try:
        model = load_router(base, root / case).eval()
    except Exception as error:
        found[case] = repr(error)
        continue
    assert model is base
    held = torch.load(root / case / "expected")
    with torch.no_grad():
        found[case] = (model(held["ids"], use_cache=False).logits - held["logits"]).abs().max().item()
(root / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def walked(request, tmp_path_factory):
    """By case that was asked for: the difference after loading elsewhere, or what was said when saved or made."""
    root = tmp_path_factory.mktemp("adapters")
    plain("llama").save_pretrained(root / "base")
    found, saved = {}, {}
    asked = (
        getattr(item, "callspec", None) for item in request.session.items if item.module is request.module
    )
    for case in [one.params["case"] for one in asked if one is not None and "case" in one.params]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = adapted(*case)
            if isinstance(model, str):
                found[case] = ("PEFT", model)
                continue
            folder = root / str(len(saved))
            try:
                save_router(model, folder)
            except UserError as error:
                assert not folder.exists(), "refused before anything is written"
                found[case] = ("refused", str(error))
                continue
            except Exception as error:
                found[case] = ("failed when saved", repr(error))
                continue
        torch.save({"ids": IDS, "logits": logits(model)}, folder / "expected")
        saved[folder.name] = case
    (root / "cases.json").write_text(json.dumps(list(saved)))
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(root)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, difference in json.loads((root / "found.json").read_text()).items():
        found[saved[name]] = ("loaded", difference)
    return found


@pytest.mark.parametrize("case", cases())
def test_an_adapter_comes_back_or_is_refused(walked, case):
    kind, told = walked[case]
    if kind == "loaded":
        assert isinstance(told, float), f"not loaded: {told}"
        assert told < 1e-4, f"logits differ by {told} after loading"
        return
    _, order, state = case
    assert kind != "failed when saved", told
    if kind == "refused":
        assert order == "without a PeftModel", told
        assert "get_peft_model" in told
        return
    assert state not in ("one", "named") or order == "without a PeftModel", f"PEFT does not do this: {told}"


def test_all_methods_that_are_saved_walk():
    assert {kind(**options).peft_type.value for kind, options in METHODS.values()} == SAVED


@pytest.mark.parametrize("method", REFUSED)
def test_what_would_not_come_back_is_refused_when_saved(method, tmp_path):
    (kind, options), told = REFUSED[method]
    model = peft.get_peft_model(routed("llama"), kind(**options, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match=told):
        save_router(model, tmp_path / "router")
    assert not (tmp_path / "router").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_fingerprint_is_the_bases_alone(method):
    model = adapted(method, "router first", "one")
    from layerroute.skipping.adapters import describe

    changed = describe(model).changed
    assert bool(changed) == (method in ("lora pissa", "lora olora")), "no biases in this model"
    assert fingerprint(model, left_out=changed) == fingerprint(plain("llama"), left_out=changed)


@pytest.mark.parametrize("method", ["lora dora", "ia3", "vera", "lora pissa", "lora tokens"])
def test_what_was_loaded_is_saved_again_and_trains_on(method, tmp_path):
    first = adapted(method, "router first", "second of two")
    if isinstance(first, str):
        first = adapted(method, "router first", "named")
    save_router(first, tmp_path / "first")
    second = load_router(plain("llama"), tmp_path / "first", trainable=True)
    assert any(p.requires_grad for n, p in second.named_parameters() if "layerroute" not in n)
    save_router(second, tmp_path / "second")
    third = load_router(plain("llama"), tmp_path / "second")
    assert (logits(third) - logits(first)).abs().max() < 1e-4
    assert not any(p.requires_grad for p in third.parameters())


def test_merged_mixed_and_foreign_adapters_are_refused(tmp_path):
    model = adapted("lora", "router first", "one")
    model.merge_adapter()
    with pytest.raises(UserError, match="merged"):
        save_router(model, tmp_path / "router")
    model.unmerge_adapter()
    merged = model.merge_and_unload()
    merged.config._name_or_path = "somewhere"
    with pytest.raises(UserError, match=r"base's own weights have changed .*q_proj"):
        save_router(merged, tmp_path / "router")
    save_router(merged, tmp_path / "router", base="elsewhere")
    mixed = peft.PeftMixedModel(routed("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="PeftMixedModel"):
        save_router(mixed, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_biases_of_the_base_that_were_trained_come_back(tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
    model = peft.get_peft_model(routed("qwen2"), config).eval()
    model.config._name_or_path = "somewhere"
    before = model.base_model.model.model.layers[2].self_attn.k_proj.bias.clone()
    move(model)
    assert not torch.equal(model.base_model.model.model.layers[2].self_attn.k_proj.bias, before)
    save_router(model, tmp_path)
    assert (logits(load_router(plain("qwen2"), tmp_path)) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("order", ["router first", "without a PeftModel"])
@pytest.mark.parametrize("method", ["lora", "lora dora", "ia3", "oft"])
def test_weights_are_put_back_to_train_on(method, order, tmp_path):
    model = adapted(method, order, "one")
    expected = logits(model)
    save_router(model, tmp_path)
    move(model, seed=9)
    assert (logits(model) - expected).abs().max() > 0.01
    restore_router(model, tmp_path)
    assert torch.equal(logits(model), expected)
    with pytest.raises(UserError, match="does not fit"):
        restore_router(routed("llama"), tmp_path)
