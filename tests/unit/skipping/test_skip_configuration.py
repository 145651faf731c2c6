"""SkipConfig: defaults, round trip, and every mistake told in one line."""

import json
from dataclasses import replace

import pytest

from layerroute.errors import UserError
from layerroute.routing import RoutingConfig
from layerroute.routing.controls import CONTROLS
from layerroute.skipping import SkipConfig, SkipProfitability


def test_default_layers_are_all_but_the_first_four_and_the_last():
    assert SkipConfig().resolve(30).layers == list(range(4, 29))
    assert SkipConfig(router_layer=2).resolve(6).layers == [2, 3, 4]
    assert SkipConfig(layers=[4, 9]).resolve(10).layers == [4, 9]


def test_sites_are_named_in_the_order_of_execution():
    config = SkipConfig(layers=[4, 7], unit="attention+mlp")
    assert config.sites() == ("layer4.attention", "layer4.mlp", "layer7.attention", "layer7.mlp")
    with pytest.raises(ValueError, match="resolve"):
        SkipConfig().sites()


def test_round_trip_through_json():
    config = SkipConfig(
        layers=[5, 6],
        unit="attention+mlp",
        granularity="per_layer",
        routing=RoutingConfig(router="linear", estimator="selected", rate=0.6, budget="quantile"),
        skip_path="identity",
        kv="evict",
        sink_tokens=4,
        execution="masked",
        profitability=SkipProfitability(prefill=0.2, decode=0.1, train=0.3),
    )
    assert SkipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_budget_is_the_share_that_is_skipped():
    config = SkipConfig(routing=RoutingConfig(estimator="selected", rate=0.9)).with_budget(0.25)
    assert (config.budget, config.routing.rate, config.routing.estimator) == (0.25, 0.75, "selected")
    for bad in (0.0, 1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            SkipConfig().with_budget(bad)


def test_who_reads_where_and_what_is_causal():
    reads = {
        name: SkipConfig(granularity=name)
        for name in ("token", "per_layer", "sequence", "batch", "sequence_mean")
    }
    assert {name: config.reads_at for name, config in reads.items()} == {
        "token": 4,
        "per_layer": None,
        "sequence": 4,
        "batch": 0,
        "sequence_mean": 4,
    }
    assert {name for name, config in reads.items() if not config.causal} == {"batch", "sequence_mean"}


@pytest.mark.parametrize("control", [control for control in CONTROLS if control != "oracle"])
@pytest.mark.parametrize("granularity", ["batch", "sequence_mean"])
def test_controls_that_look_at_no_token_are_causal(control, granularity):
    """Stochastic depth draws at random and runs every layer at inference, whatever its granularity."""
    config = SkipConfig(granularity=granularity, routing=RoutingConfig(control=control))
    assert config.causal is (control != "random"), (
        "random is drawn by the ids of all tokens that it decides for"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "blok"}, "Did you mean 'block'"),
        ({"granularity": "tokens"}, "Did you mean 'token'"),
        ({"skip_path": "lowrank"}, "Did you mean 'low_rank'"),
        ({"kv": "copy"}, "skip.kv: 'copy' is not known"),
        ({"execution": "fast"}, "skip.execution"),
        ({"rank": 0}, "skip.rank must be at least 1"),
        ({"sink_tokens": -1}, "skip.sink_tokens must be at least 0"),
        ({"sink_ids": [3, -1]}, "which count from 0"),
        ({"prefix_tokens": 0}, "skip.prefix_tokens"),
        ({"history": -1, "granularity": "per_layer"}, "skip.history must be at least 0"),
        ({"history": 2}, "skip.granularity: token reads one state"),
        ({"layers": []}, "empty"),
        ({"layers": [6, 5]}, "rising order"),
        ({"layers": [5, 5]}, "rising order"),
        ({"layers": [-1, 5], "granularity": "per_layer"}, "counts from 0"),
        ({"layers": [3, 5]}, "lower skip.router_layer"),
        ({"kv": "evict", "unit": "mlp"}, "writes no keys"),
        ({"routing": RoutingConfig(control="oracle", control_tokens=[3, 9])}, "only hybrid models"),
    ],
)
def test_mistakes_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        SkipConfig(**settings)


def test_layers_out_of_the_models_range():
    with pytest.raises(UserError, match="10 is out of range; the model has layers 0 to 9"):
        SkipConfig(layers=[4, 10]).resolve(10)
    with pytest.raises(UserError, match="lower skip"):
        SkipConfig().resolve(5)


def test_unknown_keys_get_the_nearest_one():
    with pytest.raises(UserError, match=r"skip\.sink_token is not known\. Did you mean 'sink_tokens'"):
        SkipConfig.from_dict({"sink_token": 1})
    with pytest.raises(UserError, match=r"skip\.routing\.rat is not known\. Did you mean 'rate'"):
        SkipConfig.from_dict({"routing": {"rat": 0.5}})
    with pytest.raises(UserError, match=r"skip\.profitability\.train is a share"):
        SkipConfig.from_dict({"profitability": {"train": 2}})


@pytest.mark.parametrize("kind", [list, tuple, lambda numbers: numbers])
def test_whatever_counts_is_a_list_when_saved(kind):
    routing = RoutingConfig(control="static", control_sites=kind(range(2)))
    config = SkipConfig(layers=kind(range(4, 8)), sink_ids=kind([3, 5]), routing=routing)
    again = SkipConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config == replace(config)
    assert again.layers == [4, 5, 6, 7]


def test_a_range_of_layers_is_saved():
    assert json.dumps(SkipConfig(layers=range(4, 8)).to_dict())
