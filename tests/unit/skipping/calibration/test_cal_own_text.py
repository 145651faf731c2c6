"""The model's own text: what it samples, where it goes, and that calibration sees it."""

from __future__ import annotations

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping.calibration import fit_arms
from layerroute.skipping.calibration.own_text import sample_own_text, with_own_text
from tests.parity.skipping_models import VOCABULARY, plain
from tests.unit.skipping.calibration.tiny_calibration import LENGTH, config, ids


@pytest.fixture(scope="module")
def model():
    return plain("llama").eval()


def test_the_share_is_of_all_windows(model):
    assert sample_own_text(model, config(own_text=0.25), 6).shape == (2, LENGTH)
    assert sample_own_text(model, config(own_text=0.5), 6).shape == (6, LENGTH)
    assert sample_own_text(model, config(own_text=0.0), 6).shape == (0, LENGTH)


def test_it_is_one_draw_a_seed_and_leaves_the_random_state_alone(model):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = sample_own_text(model, config(own_text=0.5, seed=3), 4)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, sample_own_text(model, config(own_text=0.5, seed=3), 4))
    assert not torch.equal(first, sample_own_text(model, config(own_text=0.5, seed=4), 4))
    assert len(set(first[:, 0].tolist())) == 4


def test_separators_and_ends_do_not_occur(model):
    kept = list(range(5, VOCABULARY, 7))
    never = [token for token in range(VOCABULARY) if token not in kept]
    held = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [never[0], never[1]]
        found = sample_own_text(model, config(own_text=0.5, sink_ids=never[2:]), 8)
    finally:
        model.generation_config.eos_token_id = held
    assert set(found.flatten().tolist()) <= set(kept)


def test_it_is_spread_evenly_among_the_windows():
    given, own = torch.zeros(6, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long)
    both = with_own_text(given, own)[:, 0].tolist()
    assert sum(both) == 2 and len(both) == 8
    assert sum(both[:4]) == 1
    order = with_own_text(torch.arange(6).unsqueeze(1), torch.arange(10, 12).unsqueeze(1))[:, 0].tolist()
    assert [token for token in order if token < 10] == list(range(6))
    assert [token for token in order if token >= 10] == [10, 11]


def test_calibration_fits_to_both(model):
    own = sample_own_text(model, config(own_text=0.25), 6)
    both = with_own_text(ids(6), own)
    named = fit_arms(model, config(own_text=0.25), statistics=ids(6), selection=ids(2, seed=1), controls=())
    mixed = fit_arms(model, config(own_text=0.0), statistics=both, selection=ids(2, seed=1), controls=())
    alone = fit_arms(model, config(own_text=0.0), statistics=ids(6), selection=ids(2, seed=1), controls=())
    for layer, site in named.policy.sites.items():
        assert torch.equal(site.skip.down, mixed.policy.sites[layer].skip.down)
        assert not torch.equal(site.skip.bias, alone.policy.sites[layer].skip.bias)
    assert "the model's own text" in named.seconds and "the model's own text" not in alone.seconds


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="own_text"):
        config(own_text=share)
