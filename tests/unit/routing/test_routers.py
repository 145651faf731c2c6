import pytest
import torch

from layerroute.errors import UserError
from layerroute.routing import MLPRouter, RoutingConfig, build_router
from layerroute.routing.module import Routing


def test_two_paths_share_one_logit():
    router = MLPRouter(8, sites=3)
    logits = router(torch.randn(2, 5, 8))
    assert logits.shape == (2, 5, 3, 2)
    assert torch.equal(logits[..., 0], torch.zeros(2, 5, 3))
    assert sum(p.numel() for p in router.parameters()) == 8 * 3 + 3


def test_more_paths_have_a_logit_each():
    assert MLPRouter(8, sites=3, paths=3)(torch.randn(1, 2, 8)).shape == (1, 2, 3, 3)


def test_mlp_has_the_original_widths():
    router = build_router("mlp", 16, sites=5)
    assert [layer.out_features for layer in router.layers] == [8, 4, 5]


def test_initial_bias_starts_near_the_expensive_path():
    router = MLPRouter(16, sites=4, widths=(8,), initial_bias=2.0, zero_init=True)
    share = router(torch.randn(1, 10, 16)).softmax(-1)[..., 1]
    torch.testing.assert_close(share, torch.full_like(share, torch.sigmoid(torch.tensor(2.0)).item()))


def test_logits_are_fp32_under_autocast_and_in_half_models():
    hidden = torch.randn(1, 7, 16)
    router = MLPRouter(16, sites=2)
    expected = router(hidden.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(hidden.bfloat16())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert router.bfloat16()(hidden).dtype == torch.float32


def test_unknown_kind():
    with pytest.raises(UserError, match="linear"):
        build_router("linea", 8, 1)
    with pytest.raises(ValueError, match="2 paths"):
        MLPRouter(8, sites=1, paths=1)


@pytest.mark.parametrize("paths", [("skip", "run"), ("gdn", "both", "softmax")])
@pytest.mark.parametrize(
    "config",
    [
        {"router": "linear"},
        {"router": "mlp"},
        *({"control": name} for name in ("random", "periodic", "static")),
    ],
    ids=lambda config: next(iter(config.values())),
)
def test_the_choice_alone_is_that_of_the_whole_decision(config, paths):
    torch.manual_seed(0)
    module = Routing(
        RoutingConfig(**config), 16, sites=[f"layer{i}.block" for i in range(5)], paths=paths
    ).eval()
    module.thresholds.value.normal_()
    hidden, ids = torch.randn(3, 33, 16) * 30, torch.randint(0, 99, (3, 33))
    positions = torch.arange(33).expand(3, -1)
    whole = module(hidden, valid=ids >= 0, positions=positions, token_ids=ids)
    assert 0.1 < whole.expensive.float().mean() < 0.9
    assert torch.equal(module.expensive(hidden, positions=positions, token_ids=ids), whole.expensive)
