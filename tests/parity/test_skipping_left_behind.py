"""What fails, or is cut off, leaves the model as it was."""

import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import layerroute
from layerroute.errors import UserError
from layerroute.skipping import add_router, find_router, load_router, remove_router, save_router
from layerroute.skipping.adapters import has_adapters
from layerroute.skipping.calibration import arms, fit_arms, install_for_budgets
from layerroute.skipping.calibration.journal import Journal
from layerroute.skipping.calibration.stack import LayerStack
from tests.parity.contracts import tokens
from tests.parity.skipping_models import DEFAULTS, VOCABULARY, plain, routed
from tests.unit.skipping.calibration.tiny_calibration import LENGTH, config, ids

IDS = tokens(2, 9, VOCABULARY)


@torch.no_grad()
def logits(model):
    return model(IDS, use_cache=False).logits


def is_plain(model, expected):
    """No router, no hook, no adapter, the classes and logits of before."""
    hooks = [module for module in model.modules() if module._forward_pre_hooks or module._forward_hooks]
    assert find_router(model) is None and not hooks and not has_adapters(model)
    assert torch.equal(logits(model), expected)
    remove_router(add_router(model, layerroute.SkipConfig(**DEFAULTS)))
    assert torch.equal(logits(model), expected)


def test_where_one_layer_cannot_be_routed_none_is():
    model = plain()
    expected, layer = logits(model), model.model.layers[4]
    kept = layer.forward
    layer.forward = lambda *args, **options: kept(*args, **options)
    with pytest.raises(UserError, match="has been replaced on the object"):
        add_router(model, layerroute.SkipConfig(**DEFAULTS))
    del layer.forward
    is_plain(model, expected)


def zeros(file):
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file)


DAMAGED = {
    "an adapter": ("adapter/adapter_model.safetensors", zeros, "PEFT cannot load the adapter"),
    "a vocabulary of another size": ("vocabulary.safetensors", zeros, "does not fit the model's vocabulary"),
    "a vocabulary": (
        "vocabulary.safetensors",
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        "vocabulary.safetensors is damaged",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_router_folder_that_does_not_load_leaves_the_plain_base(case, tmp_path):
    name, damage, message = DAMAGED[case]
    model = routed()
    model.resize_token_embeddings(VOCABULARY + 3, mean_resizing=False)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    save_router(model, tmp_path)
    damage(tmp_path / name)
    base = plain()
    expected = logits(base)
    with pytest.raises(UserError, match=message):
        load_router(base, tmp_path)
    assert base.get_input_embeddings().num_embeddings == VOCABULARY
    is_plain(base, expected)


def test_an_execution_that_is_none_is_told_before_anything_is_loaded(tmp_path):
    save_router(routed(), tmp_path)
    base = plain()
    with pytest.raises(UserError, match="unknown execution 'spase'"):
        load_router(base, tmp_path, execution="spase")
    assert find_router(base) is None


@pytest.mark.parametrize("also", [[], [0.5]])
def test_a_router_whose_thresholds_are_not_set_in_the_end_does_not_stay(also, monkeypatch):
    model = plain()
    expected = logits(model)
    found = fit_arms(model, config(also=also), statistics=ids(8), selection=ids(4, seed=3), controls=())

    def cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "layer_by_layer", cut_off)
    with pytest.raises(KeyboardInterrupt):
        install_for_budgets(model, found, ids(8))
    is_plain(model, expected)


def test_states_find_their_folder_when_the_same_calibration_has_ended_beside(tmp_path):
    stack = LayerStack(plain(), LENGTH, journal=Journal(tmp_path / "notes"))
    expected = stack.embed(ids(2)).clone()
    shutil.rmtree(tmp_path / "notes")
    assert torch.equal(stack.embed(ids(2)), expected)
