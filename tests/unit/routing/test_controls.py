import pytest
import torch

from layerroute.errors import UserError
from layerroute.routing import Routing, RoutingConfig, at_rate, forced
from layerroute.routing.controls import control_choice, periodic_choice, random_choice, static_sites


def routed(**config) -> Routing:
    return Routing(RoutingConfig(**config), 8, sites=["a", "b", "c"], paths=["gdn", "softmax"])


def decide(routing: Routing, time: int = 4000, batch: int = 2):
    ids = torch.randint(0, 5000, (batch, time), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(batch, time, dtype=torch.bool)
    return routing(
        torch.randn(batch, time, 8),
        valid=valid,
        positions=torch.arange(time).expand(batch, -1),
        token_ids=ids,
    )


@pytest.mark.parametrize("rate", [0.0, 0.125, 0.3, 1.0])
@pytest.mark.parametrize("control", ["random", "periodic"])
def test_controls_serve_their_rate(control, rate):
    for training in (False, True):
        decision = decide(routed(control=control, rate=rate).train(training))
        assert decision.rate().tolist() == pytest.approx([rate] * 3, abs=0.02)


def test_random_is_fresh_in_training_and_fixed_at_inference():
    routing = routed(control="random", rate=0.5)
    assert torch.equal(decide(routing.eval()).choice, decide(routing.eval()).choice)
    assert not torch.equal(decide(routing.train()).choice, decide(routing.train()).choice)
    other = routed(control="random", rate=0.5, control_seed=1)
    assert not torch.equal(decide(routing.eval()).choice, decide(other.eval()).choice)


def test_random_decisions_of_sites_and_neighbours_are_independent():
    choice = decide(routed(control="random", rate=0.5).eval()).choice.float()
    flat = choice.reshape(-1, 3)
    correlation = torch.corrcoef(torch.cat([flat, flat.roll(1, 0)], dim=1).T)
    assert (correlation - torch.eye(6)).abs().max() < 0.05


def test_random_does_not_depend_on_the_batch():
    keys = torch.randint(0, 10**9, (3, 40))
    rate = torch.full((2,), 0.4)
    whole = random_choice(keys, rate, training=False, seed=7)
    assert torch.equal(whole[1:2, 10:20], random_choice(keys[1:2, 10:20], rate, training=False, seed=7))


def test_periodic_is_evenly_spaced_and_shifts_between_sites():
    choice = periodic_choice(torch.arange(16)[None], torch.full((2,), 0.25))[0]
    assert choice[:, 0].nonzero().flatten().tolist() == [3, 7, 11, 15]
    assert choice[:, 1].nonzero().flatten().tolist() == [1, 5, 9, 13]


def test_static_keeps_whole_sites():
    assert static_sites(4, 0.5) == (1, 3) or len(static_sites(4, 0.5)) == 2
    assert static_sites(4, 0.0) == () and static_sites(4, 1.0) == (0, 1, 2, 3)
    decision = decide(routed(control="static", control_sites=[1], rate=1 / 3))
    assert decision.rate().tolist() == [0.0, 1.0, 0.0]


def test_bad_names_and_combinations():
    with pytest.raises(UserError, match="random"):
        RoutingConfig(control="randm")
    with pytest.raises(UserError, match="quantile"):
        RoutingConfig(budget="quantil")
    with pytest.raises(UserError, match="rate"):
        RoutingConfig(rate=1.5)
    with pytest.raises(UserError, match="no effect"):
        RoutingConfig(control="random", budget="quantile")
    with pytest.raises(UserError, match="control: static"):
        RoutingConfig(control_sites=[0])
    with pytest.raises(UserError, match=r"0\.\.2"):
        routed(control="static", control_sites=[3])
    for step in (0.0, -0.01, float("nan")):
        with pytest.raises(UserError, match="threshold_step must be a positive number"):
            RoutingConfig(budget="controller", threshold_step=step)
    with pytest.raises(UserError, match="initial_bias"):
        RoutingConfig(initial_bias=float("nan"))
    with pytest.raises(UserError, match="control_seed"):
        RoutingConfig(control="random", control_seed=2**63)
    for seed in (1 - 2**63, 2**63 - 1):
        assert 0 < decide(routed(control="random", rate=0.5, control_seed=seed).eval()).mean_rate() < 1
    with pytest.raises(UserError, match="control_after must be at least 1"):
        RoutingConfig(control="oracle", control_tokens=[3, 9], control_after=0)
    for tokens in ([9, 3], [3, 3], [3], [1, 2, 3]):
        with pytest.raises(UserError, match="control_tokens"):
            RoutingConfig(control="oracle", control_tokens=tokens)
    with pytest.raises(UserError, match="control_tokens"):
        RoutingConfig(control_tokens=[1, 2, 3])
    with pytest.raises(UserError, match="periodic"):
        control_choice(
            "periodi",
            positions=torch.zeros(1, 1, dtype=torch.long),
            keys=torch.zeros(1, 1, dtype=torch.long),
            rate=torch.ones(1),
            training=False,
        )


def test_forcing_is_local_to_its_context():
    routing = routed().eval()
    before = decide(routing).choice
    torch.manual_seed(0)
    with forced(routing, 1):
        assert decide(routing).rate().tolist() == [1.0, 1.0, 1.0]
        with forced(routing, at_rate(0.25)):
            assert decide(routing).rate().tolist() == pytest.approx([0.25] * 3, abs=0.02)
        assert decide(routing).rate().tolist() == [1.0, 1.0, 1.0]
    assert routing.chooser is None and before.shape == decide(routing).choice.shape
