import pytest
import torch

from layerroute.cli.calibration_inputs import parse_layers
from layerroute.errors import UserError
from layerroute.skipping.calibration import Score, paired_bootstrap, verdict
from layerroute.skipping.calibration.headroom import Headroom
from layerroute.skipping.calibration.headroom import verdict as headroom_verdict


def arms(**gaps):
    return {
        name: {"title": name, "at_equal_cost": {"mean": (low + high) / 2, "low": low, "high": high}}
        for name, (low, high) in gaps.items()
    }


def test_the_verdict_says_wins_losses_and_what_is_open():
    text = verdict(arms(static_influence=(-0.2, -0.1), static_greedy=(-0.1, 0.1), random=(0.1, 0.2)))
    assert "beats static_influence (-0.150 nats" in text
    assert "cannot be told from static_greedy" in text and "loses to random" in text


def row(mean, low, high):
    gap = paired_bootstrap(torch.zeros(2), torch.zeros(2))
    gap = type(gap)(mean=mean, low=low, high=high)
    return Headroom(
        budget=0.25, skipped=0.25, oracle=3.0, static_skipped=0.24, static=3.0 - mean, random=4.0, gap=gap
    )


def test_headroom_says_whether_a_router_is_worth_it():
    assert headroom_verdict([row(-0.2, -0.3, -0.1)]).startswith(
        "Per-token routing can win here: at 25% skipped"
    )
    assert "little to win" in headroom_verdict([row(-0.2, -0.5, 0.1)])
    assert "little to win" in headroom_verdict([row(-0.005, -0.006, -0.004)])


def test_a_score_is_the_mean_over_documents():
    assert Score(losses=torch.tensor([1.0, 3.0]), skipped=0.0, skipped_by_layer={}).loss == 2.0


@pytest.mark.parametrize(
    ("text", "layers"), [(None, None), ("4-7", [4, 5, 6, 7]), ("9,4,6-7", [4, 6, 7, 9]), ("3", [3])]
)
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "7-4", "1-", "-3", "1;2"])
def test_layers_that_are_no_layers_are_named(text):
    with pytest.raises(UserError, match="--layers"):
        parse_layers(text)
