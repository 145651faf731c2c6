from argparse import ArgumentTypeError

import pytest
import torch

from layerroute.cli.calibration_inputs import parse_layers
from layerroute.skipping.calibration import Score, verdict


def arms(**gaps):
    return {
        name: {"title": name, "at_equal_cost": {"mean": (low + high) / 2, "low": low, "high": high}}
        for name, (low, high) in gaps.items()
    }


def test_the_verdict_says_wins_losses_and_what_is_open():
    text = verdict(arms(static_influence=(-0.2, -0.1), static_greedy=(-0.1, 0.1), random=(0.1, 0.2)))
    assert "beats static_influence (-0.150 nats" in text
    assert "cannot be told from static_greedy" in text and "loses to random" in text


def test_a_score_is_the_mean_over_documents():
    assert Score(losses=torch.tensor([1.0, 3.0]), skipped=0.0, skipped_by_layer={}).loss == 2.0


@pytest.mark.parametrize(("text", "layers"), [("4-7", [4, 5, 6, 7]), ("9,4,6-7", [4, 6, 7, 9]), ("3", [3])])
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "7-4", "1-", "-3", "1;2"])
def test_layers_that_are_no_layers_are_named(text):
    with pytest.raises(ArgumentTypeError, match="give layers like"):
        parse_layers(text)
