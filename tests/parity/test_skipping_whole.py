"""``save_pretrained`` and ``from_pretrained`` of a routed model do what their names say, or say what to call."""

import contextlib
import json
import logging
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import layerroute
from layerroute.errors import UserError
from layerroute.routing import RoutingConfig
from layerroute.skipping import get_router, last_decision, remove_router, router_disabled
from tests.parity.contracts import tokens
from tests.parity.skipping_models import FAMILIES, VOCABULARY, plain, routed
from tests.tiny_pretrained import write_tokenizer

IDS = tokens(2, 11, VOCABULARY)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


KINDS = {
    "per layer": {"granularity": "per_layer"},
    "token": {"granularity": "token"},
    "attention and mlp": {"unit": "attention+mlp", "granularity": "per_layer"},
    "several budgets": {"budgets": {"0.25": [0.75] * 4, "0.5": [0.5] * 4}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_routed_model_of_every_family_comes_back(family, tmp_path):
    model = routed(family)
    model.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(last_decision(again).choice, last_decision(model).choice)
    assert 0 < last_decision(again).mean_rate() < 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_router_comes_back_twice(kind, tmp_path):
    model = routed("llama", **KINDS[kind])
    if get_router(model).budgets is not None:
        get_router(model).set_budget(0.5)
    for name in ("once", "twice"):
        model.save_pretrained(tmp_path / name)
        again = opened(tmp_path / name)
        assert torch.equal(logits(again), logits(model))
        budgets = get_router(again).budgets
        assert budgets is None or budgets.current == 0.5
        model = again
    text = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert text.shape == (2, 16)
    assert json.loads((tmp_path / "once" / "config.json").read_text())["model_type"] == "layerroute"


def test_load_opens_it_too_and_training_goes_on(tmp_path):
    model = routed("llama", routing=RoutingConfig(router="mlp", estimator="gumbel_st"))
    model.train()(IDS, labels=IDS).loss.backward()
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as a Trainer does
    again = opened(tmp_path)
    again.layerroute.requires_grad_(True)
    again.train()(IDS, labels=IDS).loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in again.layerroute.parameters())


def test_switched_off_it_is_the_plain_base(tmp_path):
    model = routed("llama")
    with router_disabled(model):
        model.save_pretrained(tmp_path / "off")
        expected = logits(model)
    remove_router(model)
    model.save_pretrained(tmp_path / "removed")
    assert "save_pretrained" not in vars(model)
    for name in ("off", "removed"):
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["unexpected_keys"] and not info["missing_keys"]
        assert torch.equal(logits(again.eval()), expected)
    assert (tmp_path / "off" / "config.json").read_text() == (
        tmp_path / "removed" / "config.json"
    ).read_text()


def test_without_the_router_it_was_opened_with_it_is_the_plain_base_too(tmp_path):
    model = routed("llama")
    model.save_pretrained(tmp_path / "whole")
    again = opened(tmp_path / "whole")
    with router_disabled(again):
        again.save_pretrained(tmp_path / "off")
        expected = logits(again)
    assert torch.equal(logits(again), logits(model)), "saving has changed nothing"
    remove_router(again)
    assert (type(again), type(again.config)) == (type(model), type(model.config))
    again.save_pretrained(tmp_path / "removed")
    for name in ("off", "removed"):
        base, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert type(base) is type(model) and not info["unexpected_keys"] and not info["missing_keys"]
        assert torch.equal(logits(base.eval()), expected)


def test_a_router_that_was_opened_with_its_base_and_saved_alone_is_loaded(tmp_path):
    routed("llama").save_pretrained(tmp_path / "whole")
    write_tokenizer(tmp_path / "whole", Path(__file__))
    model = opened(tmp_path / "whole")
    with torch.no_grad():
        next(iter(get_router(model).skip_paths.values())).bias.add_(1.0)
    layerroute.save(model, tmp_path / "router")
    again, _ = layerroute.load(tmp_path / "router", device="cpu")
    assert torch.equal(logits(again), logits(model))


def test_the_model_opens_it_and_its_class_alone_is_not_silent(tmp_path, caplog):
    model = routed("llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model.from_pretrained(tmp_path).eval()), logits(model))
    caplog.clear()
    with caplog_of_transformers(caplog):
        type(model).from_pretrained(tmp_path)  # transformers would open anything so
    assert "model of type `layerroute` to instantiate a model of type `llama`" in caplog.text


@contextlib.contextmanager
def caplog_of_transformers(caplog):
    logger = logging.getLogger("transformers")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.WARNING, logger="transformers"):
        yield
    logger.propagate = before


def with_adapters(model):
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    return model


def quantised(model):
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    return model


CANNOT = {
    "adapters inside": (with_adapters, {}, r"adapters inside.*layerroute\.save\(model, folder\)"),
    "quantised": (quantised, {}, r"quantised weights.*layerroute\.save\(model, folder\)"),
    "pushed at once": (lambda model: model, {"push_to_hub": True}, r"model\.push_to_hub\(name\)"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_saved_whole_says_what_to_call(case, tmp_path):
    change, options, message = CANNOT[case]
    model = change(routed("llama"))
    with pytest.raises(UserError, match=message):
        model.save_pretrained(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_adapters_and_router_are_saved_by_what_is_named(tmp_path):
    plain("llama").save_pretrained(tmp_path / "base")
    base, _ = AutoModelForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    model = peft.get_peft_model(layerroute.add_router(base), peft.LoraConfig(target_modules=["q_proj"]))
    layerroute.save(model, tmp_path / "router")
    assert (tmp_path / "router" / "adapter").is_dir() and (tmp_path / "router" / "router.json").is_file()
