from argparse import ArgumentTypeError

import pytest
import torch

from layerroute.cli.calibration_inputs import parse_layers
from layerroute.skipping.calibration import Score, verdict
from layerroute.skipping.calibration.result import facts


def arms(routed="routed per token", **gaps):
    return {"routed": {"title": routed}} | {
        name: {"title": name, "at_equal_cost": {"mean": (low + high) / 2, "low": low, "high": high}}
        for name, (low, high) in gaps.items()
    }


def test_the_verdict_says_wins_losses_and_what_is_open():
    text = verdict(arms(static_influence=(-0.2, -0.1), static_greedy=(-0.1, 0.1), random=(0.1, 0.2)))
    assert text.startswith("At equal executed FLOPs per-token routing beats static_influence (-0.150 nats")
    assert "cannot be told from static_greedy" in text and "loses to random" in text
    assert "per-sequence routing beats" in verdict(arms("routed per sequence", random=(-0.2, -0.1)))


@pytest.mark.parametrize(
    ("unit", "granularity", "sites", "told"),
    [
        ("mlp", "token", {"4": 0.3, "5": 0.3}, "tokens that skip, 30% at every layer"),
        ("mlp", "sequence", {"4": 0.3, "5": 0.2}, "sequences that skip, by layer: 4: 30%, 5: 20%"),
        (
            "attention+mlp",
            "per_layer",
            {"4.attention": 0.1, "4.mlp": 0.3, "5.attention": 0.1, "5.mlp": 0.2},
            "tokens that skip, 10% at every attention; by mlp: 4: 30%, 5: 20%",
        ),
    ],
)
def test_where_the_routed_arm_skips_is_told(unit, granularity, sites, told):
    rates = {name: {"rate": rate} for name, rate in sites.items()}
    static = {"greedy": list(sites)[1:], "block_greedy": [5]}
    lines = facts({"recipe": {"unit": unit, "granularity": granularity}, "static": static, "sites": rates})
    assert lines[-1] == f"routed, share of {told}"
    of = {"mlp": "the MLP of layers 5", "attention+mlp": "halves of layers 4.mlp, 5.attention, 5.mlp"}[unit]
    assert lines[0] == f"static prune by greedy takes out {of}"
    assert lines[1] == "static prune of whole layers by greedy takes out layers 5"


def test_a_score_is_the_mean_over_documents():
    assert Score(losses=torch.tensor([1.0, 3.0]), skipped=0.0, skipped_by_layer={}).loss == 2.0


@pytest.mark.parametrize(("text", "layers"), [("4-7", [4, 5, 6, 7]), ("9,4,6-7", [4, 6, 7, 9]), ("3", [3])])
def test_layers_are_read(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "7-4", "1-", "-3", "1;2"])
def test_layers_that_are_no_layers_are_named(text):
    with pytest.raises(ArgumentTypeError, match="give layers like"):
        parse_layers(text)
