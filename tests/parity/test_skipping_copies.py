"""A routed model is copied, averaged, pickled and saved whole like any other."""

import copy
import io
import os
import pickle
import subprocess
import sys

import peft
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from layerroute.errors import UserError
from layerroute.routing import RoutingConfig
from layerroute.skipping import (
    executed,
    forced,
    get_router,
    last_decision,
    remove_router,
    router_disabled,
)
from tests.parity.contracts import assert_close, tokens
from tests.parity.skipping_models import FAMILIES, VOCABULARY, plain, routed

IDS = tokens(2, 9, VOCABULARY)


def after_backward(family="llama", **skip):
    """A model that has just learned: its last decision still has its graph."""
    routing = RoutingConfig(router="mlp", estimator="gumbel_st", initial_bias=0.0)
    model = routed(family, routing=routing, **skip).train()
    model(IDS, labels=IDS).loss.backward()
    assert last_decision(model).gate.requires_grad
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(IDS, use_cache=False).logits


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "averaged": lambda model: AveragedModel(model).module,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": by_torch,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_computes_the_same_and_is_a_model_of_its_own(family, way):
    model = after_backward(family, unit="attention+mlp" if way == "pickle" else "block")
    twin = WAYS[way](model)
    assert not get_router(twin).last.gate.requires_grad
    expected = logits(model)
    assert torch.equal(logits(twin), expected)
    with torch.no_grad():
        for parameter in get_router(twin).parameters():
            parameter.zero_()
    assert torch.equal(logits(model), expected), "the original"
    assert not torch.equal(logits(twin), expected), "the copy's own router decides"
    remove_router(twin)
    assert torch.equal(logits(twin), logits(plain(family)))
    assert {type(m) for m in twin.modules()} == {type(m) for m in plain(family).modules()}


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_a_model_with_an_adapter(way):
    torch.manual_seed(0)
    model = peft.get_peft_model(after_backward(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert torch.equal(logits(WAYS[way](model)), logits(model))


@pytest.mark.parametrize("granularity", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("kv", ["project", "evict"])
def test_a_cache_is_copied_and_pickled(granularity, kv):
    model = routed(granularity=granularity, kv=kv, prefix_tokens=4)
    with torch.no_grad():
        past = model(IDS[:, :6], use_cache=True).past_key_values
        copies = [pickle.loads(pickle.dumps(past)), copy.deepcopy(past)]
        expected = model(IDS[:, 6:], past_key_values=past).logits
        for twin in copies:
            assert torch.equal(model(IDS[:, 6:], past_key_values=twin).logits, expected)


LOADED = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
assert not any(name.startswith("tests.") for name in sys.modules)
ids, expected = torch.load(sys.argv[2])
with torch.no_grad():
    assert torch.equal(model(ids, use_cache=False).logits, expected)
"""


def test_a_model_saved_whole_is_loaded_by_another_process(tmp_path):
    model = after_backward("smollm3")
    torch.save((IDS, logits(model)), tmp_path / "expected")
    torch.save(model, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path / "model"), str(tmp_path / "expected")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# What changes under a live cache is exact, or refused


@torch.no_grad()
def chain(model, changes, masked=False):
    """Logits of one sequence in a cache, with a change before the token of each index."""
    ids, pieces, past = tokens(1, 16, VOCABULARY), [], None
    with executed(model, "masked" if masked else "sparse"):
        for at in range(4, 16):
            changes.get(at, lambda: None)()
            start = 0 if past is None else at
            out = model(ids[:, start : at + 1], past_key_values=past, use_cache=True)
            past = out.past_key_values
            pieces.append(out.logits[:, -1])
    return torch.cat(pieces)


def with_two_adapters():
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(routed("llama"), config, adapter_name="one")
    model.add_adapter("two", config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("change", ["another adapter", "no adapter", "and back"])
def test_waiting_keys_are_those_of_the_adapter_that_was_on(change):
    """Keys of skipped tokens are made later; masked execution makes them at once."""
    model = with_two_adapters()
    base = model.base_model
    changes = {
        "another adapter": {9: lambda: base.set_adapter("two"), 4: lambda: base.set_adapter("one")},
        "no adapter": {9: base.disable_adapter_layers, 4: base.enable_adapter_layers},
        "and back": {
            4: lambda: base.set_adapter("one"),
            7: lambda: base.set_adapter("two"),
            8: lambda: base.set_adapter("one"),
        },
    }[change]
    skipping = torch.zeros(1, 16, 4, dtype=torch.long)
    skipping[:, 12:] = 1
    with forced(model, skipping):
        expected = chain(model, changes, masked=True)
        found = chain(model, changes)
        unchanged = chain(model, {4: changes[4]})
    assert_close(found, expected, change)
    assert (unchanged - expected).abs().max() > 0.01, "the change matters"


def test_weights_that_change_under_waiting_keys_are_refused():
    model = routed("llama")
    skipping = torch.zeros(1, 16, 4, dtype=torch.long)
    skipping[:, 12:] = 1

    def learn():
        model.model.layers[3].self_attn.k_proj.weight.mul_(1.1)

    with forced(model, skipping), pytest.raises(UserError, match="changed under a cache"):
        chain(model, {9: learn})


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_routing_switched_off_and_on_over_one_cache(kv):
    model = routed("llama", kv=kv, granularity="sequence", prefix_tokens=6)
    ids = tokens(2, 16, VOCABULARY)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        with router_disabled(model):
            past = model(ids[:, :6], use_cache=True).past_key_values
        if kv == "evict":
            with pytest.raises(UserError, match="filled without eviction"):
                model(ids[:, 6:], past_key_values=past)
            past = model(ids[:, :6], use_cache=True).past_key_values
            with router_disabled(model), pytest.raises(UserError, match="which is off now"):
                model(ids[:, 6:], past_key_values=past)
            return
        out = model(ids[:, 6:], past_key_values=past)
    assert_close(out.logits, expected[:, 6:], "the first tokens, which decide, ran everything anyway")
    foreign = plain("llama")(ids[:, :6], use_cache=True).past_key_values
    with pytest.raises(UserError, match="filled without the router"):
        model(ids[:, 6:], past_key_values=foreign)
