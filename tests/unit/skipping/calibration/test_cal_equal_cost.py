"""No verdict at unequal cost: thresholds move until the shares agree on the very text, or no winner is named."""

from __future__ import annotations

import pytest
import torch

from layerroute.skipping import add_router, get_router
from layerroute.skipping.calibration import (
    FittedArms,
    Score,
    agrees,
    compare_arms,
    fit_arms,
    installed,
    matched,
    result_sections,
    saved_share,
    score,
    serve_at,
    verdict,
)
from layerroute.skipping.calibration.calibrate import TABLE, applicable
from layerroute.skipping.calibration.equal_cost import EXACT, match_all
from layerroute.skipping.calibration.in_order import Policy
from layerroute.skipping.flops import skip_flops
from layerroute.skipping.skip_config import SkipConfig
from tests.parity.skipping_models import plain
from tests.unit.skipping.calibration.tiny_calibration import config, ids

IDS = {"statistics": ids(24), "selection": ids(8, seed=1), "heldout": ids(40, seed=2)}


def tiny_model():
    return plain().eval()


def made(losses, saved):
    return Score(losses=torch.tensor(losses), skipped=saved, skipped_by_layer={2: saved}, saved=saved)


def sections(scores, against):
    asked = config()
    empty = FittedArms(
        config=asked, skip=asked.skip_config(7), policy=Policy(), static={}, rounds=[], chosen=0, arms={}
    )
    return result_sections(empty, scores, against)


def test_two_arms_of_unequal_share_name_no_winner():
    routed, static = made([1.0, 1.1, 1.2] * 4, 0.20), made([2.0, 2.1, 2.2] * 4, 0.24)
    against = {"static_greedy": matched(routed, static)}
    assert against["static_greedy"] is None
    arms = sections({"dense": made([0.9] * 12, 0.0), "routed": routed, "static_greedy": static}, against)[
        "arms"
    ]
    assert arms["static_greedy"]["routed_minus_this"]["high"] < 0, "as served, routing is ahead by a nat"
    told = verdict(arms)
    assert "beats" not in told and "loses" not in told
    assert told.startswith("No verdict against static prune, greedy by loss (it saves 24.0%, routed 20.0%)")
    assert arms["static_greedy"]["at_equal_cost"] is None


def test_arms_of_equal_share_are_told_apart():
    routed, static = made([1.0, 1.1, 1.2] * 4, 0.236), made([2.0, 2.1, 2.3] * 4, 0.24)
    against = {"static_greedy": matched(routed, static)}
    arms = sections({"routed": routed, "static_greedy": static}, against)["arms"]
    assert arms["static_greedy"]["at_equal_cost"]["worst"] == pytest.approx(-1.0)
    assert verdict(arms).startswith("At equal executed FLOPs per-token routing beats static prune, greedy")


@pytest.mark.parametrize("unit", ["block", "attention", "mlp"])
def test_the_saved_share_is_that_of_the_layers_flops_and_not_of_the_sites(unit):
    model = add_router(tiny_model(), SkipConfig(layers=[2, 3], unit=unit, router_layer=1, rank=4))
    length = 400
    flops = skip_flops(model.config, get_router(model).config, length)
    rates = torch.tensor([0.25, 1.0])
    paid = flops.sparse_per_token([0.25, 1.0], evenly=True) - flops.output
    assert saved_share(model, rates, length) == pytest.approx(1 - paid / (flops.layers_per_token), rel=1e-6)
    everywhere = saved_share(model, torch.ones(2), length)
    assert -0.1 < everywhere < 0, "a router that skips nothing costs its own products"


@pytest.fixture(scope="module", params=["per_layer", "token"])
def routed(request):
    model = tiny_model()
    chosen = config(granularity=request.param, budget=0.5)
    return model, fit_arms(model, chosen, statistics=IDS["statistics"], selection=IDS["selection"])


@pytest.mark.parametrize("serve", ["threshold", "rate"])
def test_a_routed_model_is_served_at_the_share_asked_for_and_put_back(routed, serve):
    model, calibration = routed

    def state():
        held = [(r.thresholds.value, r.rate) for r in get_router(model).all_routings()]
        return [value.clone() for both in held for value in both]

    with installed(model, calibration.arms["routed"], calibration.skip):
        get_router(model).set_serve(serve)
        before = state()
        own = score(model, IDS["heldout"])
        for share in (own.saved - 0.05, own.saved, own.saved + 0.04):
            served = serve_at(model, IDS["heldout"], share)
            assert served.saved == pytest.approx(share, abs=EXACT)
        far = serve_at(model, IDS["heldout"], 0.95)
        assert not agrees(far, 0.95) and far.saved >= own.saved
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
        assert all(routing.seen is None for routing in get_router(model).all_routings())
        torch.testing.assert_close(score(model, IDS["heldout"]).losses, own.losses)


@pytest.mark.parametrize("serve", ["threshold", "rate"])
def test_what_is_left_of_half_a_point_is_read_off_between_two_passes(routed, serve, monkeypatch):
    from layerroute.skipping.calibration import equal_cost

    model, calibration = routed
    passes = []
    with installed(model, calibration.arms["routed"], calibration.skip):
        get_router(model).set_serve(serve)
        share = score(model, IDS["heldout"]).saved - 0.004  # as it is served agrees
        found = serve_at(model, IDS["heldout"], share, known=passes)
    high = min((one.score for one in passes if one.score.saved >= share), key=lambda one: one.saved)
    low = max((one.score for one in passes if one.score.saved < share), key=lambda one: one.saved)
    assert len(passes) <= 1 + equal_cost.MORE and high.saved - low.saved < 0.02
    part = (share - low.saved) / (high.saved - low.saved)
    assert found.saved == share and 0 < part < 1
    torch.testing.assert_close(found.losses, (1 - part) * low.losses + part * high.losses)
    assert found.skipped == pytest.approx((1 - part) * low.skipped + part * high.skipped)
    assert min(low.skipped, high.skipped) < found.skipped < max(low.skipped, high.skipped)
    layers = sum(found.skipped_by_layer.values()) / len(found.skipped_by_layer)
    assert layers == pytest.approx(found.skipped)
    # Of two on one side nothing is read off.
    above = [one for one in passes if one.score.saved >= share]
    assert equal_cost._read_off(above, share) is equal_cost._nearest(above, share).score


def test_few_passes_are_enough(routed, monkeypatch):
    from layerroute.skipping.calibration import equal_cost

    model, calibration = routed
    calls = []
    monkeypatch.setattr(equal_cost, "score", lambda *a, **k: calls.append(1) or score(*a, **k))
    with installed(model, calibration.arms["routed"], calibration.skip):
        serve_at(model, IDS["heldout"], score(model, IDS["heldout"]).saved - 0.05)
        assert len(calls) <= 4
        calls.clear()
        serve_at(model, IDS["heldout"], 0.95)
        assert len(calls) <= equal_cost.PASSES


@pytest.mark.parametrize("serve", ["threshold", "rate"])
def test_later_searches_know_what_earlier_ones_served(routed, serve, monkeypatch):
    from layerroute.skipping.calibration import equal_cost

    model, calibration = routed
    calls = []
    monkeypatch.setattr(equal_cost, "score", lambda *a, **k: calls.append(1) or score(*a, **k))
    windows = len(IDS["heldout"])
    with installed(model, calibration.arms["routed"], calibration.skip):
        get_router(model).set_serve(serve)
        own = score(model, IDS["heldout"]).saved
        shares = [own - 0.04, own - 0.03, own - 0.043, own - 0.035, own - 0.028]
        for share in shares:
            assert agrees(serve_at(model, IDS["heldout"], share), share)
        alone = len(calls)
        calls.clear()
        others = {f"arm{at}": made([9.0] * windows, share) for at, share in enumerate(shares)}
        found = match_all(model, IDS["heldout"], others)
        assert len(calls) < alone / 2
        for name, other in others.items():
            assert found[name] is not None and agrees(found[name].served, other.saved)


def test_static_arms_have_nothing_to_move(routed):
    model, calibration = routed
    with installed(model, calibration.arms["static_greedy"], calibration.skip):
        served = serve_at(model, IDS["heldout"], 0.01)
        assert served.saved == score(model, IDS["heldout"]).saved > 0.05


def test_every_control_meets_the_routed_arm_at_its_own_share(routed):
    model, calibration = routed
    scores, against = compare_arms(model, calibration, IDS["heldout"])
    assert list(against) == list(applicable(TABLE, calibration.config.unit))
    for name, match in against.items():
        assert match is None or abs(match.served.saved - scores[name].saved) <= 0.005
    assert any(match is not None for match in against.values())
    arms = result_sections(calibration, scores, against)["arms"]
    for name, match in against.items():
        gap = arms[name]["at_equal_cost"]
        assert (gap is None) == (match is None)
        if gap is not None:
            assert gap["mean"] == pytest.approx(gap["routed_loss"] - scores[name].loss, abs=1e-6)
    with installed(model, calibration.arms["routed"], calibration.skip):
        far = match_all(model, IDS["heldout"], {"static": made([1.0] * len(IDS["heldout"]), 0.9)})
    assert far == {"static": None}
