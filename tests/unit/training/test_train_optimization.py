import itertools

import pytest
import torch
from torch import nn

from layerroute.training.optimization import decay_parameter_names, learning_rate_factor


@pytest.mark.parametrize(
    "settings", [{}, {"tie_word_embeddings": True}, {"routed_unit": "block"}, {"normalize_paths": True}]
)
def test_matrices_decay_and_nothing_else(make_model, settings) -> None:
    model = make_model(**settings)
    decayed = set(decay_parameter_names(model))
    parameters = dict(model.named_parameters())
    assert decayed <= set(parameters)
    left_alone = set(parameters) - decayed
    assert all(parameters[name].ndim >= 2 for name in decayed)
    assert not [name for name in decayed if "norm" in name or name.endswith(("bias", "A_log", "dt_bias"))]
    # Both kinds are really there: each GDN mixer has its decay parameters, each block its norms.
    assert any(name.endswith("A_log") for name in left_alone)
    assert any(name.endswith("dt_bias") for name in left_alone)
    assert any("norm" in name for name in left_alone)
    assert any(name.endswith("q_proj.weight") for name in decayed)
    assert any(name.endswith("embed_tokens.weight") for name in decayed)
    assert not [name for name in left_alone if name.endswith("proj.weight")]


def test_marked_and_frozen_parameters_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight._no_weight_decay = True
    model[1].weight.requires_grad_(False)
    assert decay_parameter_names(model) == ["2.weight"]


def test_a_two_dimensional_norm_or_decay_is_left_alone() -> None:
    class GroupNorm2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(torch.ones(2, 2))
            self.q_norm = nn.Linear(2, 2, bias=False)
            self.other = GroupNorm2d()
            self.scale = nn.Parameter(torch.ones(2))
            self.proj = nn.Linear(2, 2)

    assert decay_parameter_names(Mixer()) == ["proj.weight"]


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, warmup_steps=3, total_steps=10) for step in range(11)]
    assert factors[:4] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert factors[9] == pytest.approx(1 / 7)
    assert factors[10] == 0.0
    falling = factors[3:]
    assert [a - b for a, b in itertools.pairwise(falling)] == pytest.approx([1 / 7] * 7)


def test_a_run_shorter_than_its_warmup_still_moves() -> None:
    assert learning_rate_factor(0, warmup_steps=1, total_steps=1) == 1.0
