import itertools

import pytest
import torch

from layerroute.skipping.calibration.allocation import STEPS, allocate, convex_hull, cost_curve
from layerroute.skipping.calibration.costs import LayerCosts, greedy_layers


def test_a_cost_curve_counts_the_cheapest_tokens_by_score_first():
    score = torch.arange(80.0).flip(0)
    costs = LayerCosts(cost=torch.arange(80.0), score=score, influence=score)
    curve = cost_curve(costs)
    assert len(curve) == STEPS + 1 and curve[0] == 0
    assert curve[1] == pytest.approx((79 + 78) / 80) and curve[-1] == pytest.approx(79 * 40 / 80)


def test_the_hull_is_convex_and_touches_the_curve():
    torch.manual_seed(0)
    curve = torch.cat([torch.zeros(1), torch.rand(20).cumsum(0) - 3]).double()
    hull = convex_hull(curve)
    assert (
        (hull <= curve + 1e-12).all() and hull[0] == curve[0] and hull[-1] == pytest.approx(float(curve[-1]))
    )
    assert (hull.diff().diff() >= -1e-9).all()
    convex = torch.linspace(0, 1, 21).double().square()
    torch.testing.assert_close(convex_hull(convex), convex)


@pytest.mark.parametrize("budget", [0.1, 0.33, 0.5, 0.9])
def test_allocation_serves_the_budget_and_nothing_cheaper_exists(budget):
    torch.manual_seed(1)
    share = torch.linspace(0, 1, STEPS + 1).double()
    curves = {layer: (layer + 0.5) * share.pow(1 + layer) for layer in range(3)}
    rates = allocate(curves, budget)
    assert sum(rates.values()) / 3 == pytest.approx(budget)
    assert all(0 <= rate <= 1 for rate in rates.values())

    def cost(rates):
        return sum((layer + 0.5) * rate ** (1 + layer) for layer, rate in rates.items())

    grid = [index / 20 for index in range(21)]
    others = (
        dict(enumerate(point))
        for point in itertools.product(grid, repeat=3)
        if abs(sum(point) / 3 - budget) < 1e-9
    )
    best = min((cost(one) for one in others), default=float("inf"))
    assert cost(rates) <= best + 2e-3


def test_layers_that_help_when_they_are_skipped_go_first():
    share = torch.linspace(0, 1, STEPS + 1).double()
    rates = allocate({0: share, 1: -share, 2: 2 * share}, 1 / 3)
    assert rates == {0: 0.0, 1: 1.0, 2: 0.0}


def brute(loss, layers, count):
    removed = ()
    for _ in range(count):
        removed = (*removed, min((x for x in layers if x not in removed), key=lambda x: loss((*removed, x))))
    return tuple(sorted(removed))


def test_greedy_is_greedy_and_measures_less_than_everything():
    torch.manual_seed(0)
    own = torch.rand(10)
    pairs = torch.rand(10, 10)
    calls = []

    def loss(removed):
        calls.append(removed)
        together = sum(float(pairs[a, b] + pairs[b, a]) for a, b in itertools.combinations(removed, 2))
        return float(own[list(removed)].sum()) + together

    expected = brute(loss, range(10), 4)
    calls.clear()
    assert sorted(greedy_layers(loss, {layer: float(own[layer]) for layer in range(10)}, 4)) == list(expected)
    assert len(calls) < 10 + 9 + 8 + 7
    assert greedy_layers(loss, {layer: float(own[layer]) for layer in range(10)}, 1) == (int(own.argmin()),)


def test_allocation_stays_near_where_costs_were_measured_and_serves_the_budget():
    torch.manual_seed(2)
    share = torch.linspace(0, 1, STEPS + 1).double()
    curves = {layer: (layer + 0.5) * share for layer in range(4)}
    around = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0}
    assert allocate(curves, 0.25) == {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}
    near = allocate(curves, 0.25, around=around, reach=0.25)
    assert near == {0: 0.25, 1: 0.0, 2: 0.75, 3: 0.0}
    assert allocate(curves, 0.25, around=around, reach=0.0) == around


def test_the_reach_is_widened_where_the_budget_lies_outside_of_it():
    share = torch.linspace(0, 1, STEPS + 1).double()
    curves = {layer: (layer + 0.5) * share for layer in range(4)}
    around = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0}
    for budget in (0.01, 0.7, 0.97):
        rates = allocate(curves, budget, around=around, reach=0.1)
        assert sum(rates.values()) / 4 == pytest.approx(budget)


def test_a_part_of_a_curve_that_is_not_convex_is_measured_by_its_own_hull():
    # From a half on skipping is free, but the first half is dear: around 0.75 only what lies near counts.
    share = torch.linspace(0, 1, STEPS + 1).double()
    cliff = torch.where(share < 0.5, share * 10, torch.full_like(share, 5.0))
    rates = allocate({0: cliff, 1: share}, 0.5, around={0: 0.75, 1: 0.25}, reach=0.25)
    assert rates == {0: 1.0, 1: 0.0}


@pytest.mark.parametrize(
    ("budget", "least"), [(0.05, 0.15), (0.1, 0.15), (0.1, 0.3), (0.25, 0.3), (0.4, 0.3)]
)
def test_a_share_too_small_to_save_time_is_not_taken(budget, least):
    share = torch.linspace(0, 1, STEPS + 1).double()
    # The first tokens of every layer are nearly free: without a least share all layers would take a few.
    curves = {layer: (layer + 1.0) * share.square() for layer in range(4)}
    free = allocate(curves, budget)
    rates = allocate(curves, budget, least=least)
    assert sum(rates.values()) / 4 == pytest.approx(budget)
    assert all(rate == 0 or rate >= least - 1e-9 for rate in rates.values())
    assert any(0 < rate < least for rate in free.values())

    def cost(rates):
        return sum((layer + 1.0) * rate**2 for layer, rate in rates.items())

    grid = [0.0] + [index / STEPS for index in range(round(least * STEPS), STEPS + 1)]
    total = round(4 * budget * STEPS)
    best = min(
        cost(dict(enumerate(point)))
        for point in itertools.product(grid, repeat=4)
        if round(sum(point) * STEPS) == total
    )
    assert cost(rates) <= 1.02 * best


def test_a_budget_below_the_least_share_is_one_layers():
    share = torch.linspace(0, 1, STEPS + 1).double()
    rates = allocate({0: 2 * share, 1: share, 2: 3 * share}, 0.02, least=0.5)
    assert rates == {0: 0.0, 1: pytest.approx(0.06), 2: 0.0}
