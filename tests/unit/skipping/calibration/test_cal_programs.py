"""A program of layers a prompt: the search finds the best there is, and what the classifier learns is served."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping import executed, last_decision
from layerroute.skipping.calibration import Journal, fit_arms, installed, journal
from layerroute.skipping.calibration.calibrate import silent
from layerroute.skipping.calibration.controls import Ranking
from layerroute.skipping.calibration.costs import Search
from layerroute.skipping.calibration.in_order import replay
from layerroute.skipping.calibration.programs import _Searched, find_programs, learn_programs
from layerroute.skipping.calibration.stack import FullDepth, LayerStack
from layerroute.skipping.skip_config import UNITS
from tests.parity.skipping_models import plain
from tests.unit.skipping.calibration.tiny_calibration import LAYERS, LENGTH, Cut, config, ids

PROGRAMS = {"granularity": "sequence", "allocation": "search", "prefix_tokens": 5, "precision": "fp32"}


def mixed(count, seed):
    """Random tokens, and one token over and over, in turn."""
    windows = ids(count, seed)
    windows[::2] = windows[::2, :1]
    return windows


def ranked(asked, model=None):
    stack = LayerStack(model or plain(), LENGTH, unit=asked.unit)
    return Ranking.of(stack, ids(16), ids(8, seed=3), asked, clock=silent)


@pytest.mark.parametrize("unit", UNITS)
def test_every_window_is_given_the_best_of_all_programs(unit):
    """There are few enough on a tiny model to try them all."""
    asked = config(**PROGRAMS, unit=unit, budget=0.5, layers=[2, 4] if "+" in unit else LAYERS)
    ranking, windows = ranked(asked), mixed(8, seed=5)
    found = find_programs(ranking, windows, asked, 2, silent)
    assert found.sum(dim=1).tolist() == [2] * 8
    stack, start = ranking.stack, ranking.start
    search = Search.of(stack, windows)
    prefixed = replace(start, sink_tokens=asked.prefix_tokens)
    counted = ~prefixed.sinks(windows)
    losses = {}
    for pair in combinations(ranking.layers, 2):
        policy = prefixed.with_rates(dict.fromkeys(pair, 1.0))
        divergence = search.divergence(stack, replay(stack, policy, search.embedded, windows))
        losses[pair] = (divergence * counted).sum(dim=1) / counted.sum(dim=1)
    every = torch.stack(list(losses.values()), dim=1)
    chosen = [
        tuple(place for place, skips in zip(ranking.layers, row, strict=True) if skips) for row in found
    ]
    own = torch.stack([losses[pair][row] for row, pair in enumerate(chosen)])
    torch.testing.assert_close(own, every.min(dim=1).values, rtol=1e-4, atol=1e-6)
    assert len(set(chosen)) > 1, "windows differ in what they can spare"


@pytest.mark.parametrize("unit", UNITS)
def test_programs_side_by_side_are_each_alone(unit):
    asked = config(**PROGRAMS, unit=unit)
    ranking, windows = ranked(asked), ids(4, seed=5)
    searched = _Searched(ranking.stack, ranking.start, windows, 5)
    below = FullDepth(ranking.stack, windows).into(2)
    programs = torch.rand(4, len(ranking.layers), generator=torch.Generator().manual_seed(0)) < 0.5
    both = searched.through(programs, below)
    for row, program in enumerate(programs):
        alone = replace(ranking.start, sink_tokens=5).with_rates(
            {place: float(skips) for place, skips in zip(ranking.layers, program, strict=True)}
        )
        one = windows[row : row + 1]
        expected = replay(ranking.stack, alone, ranking.stack.embed(one), one)
        torch.testing.assert_close(both[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_the_classifier_learns_what_the_first_tokens_tell():
    """Two kinds of window, told by their first token alone, which go two ways: new windows go the same ways."""
    asked, stack = config(**PROGRAMS), LayerStack(plain(), LENGTH)

    def windows(count, seed):
        text, kind = ids(count, seed), torch.arange(count) % 2
        text[:, :5] = torch.where(kind == 0, 7, 11).unsqueeze(1)
        return text, kind

    text, kind = windows(30, seed=1)
    one, other = torch.tensor([True, False, True, False]), torch.tensor([False, True, True, False])
    programs = torch.where((kind == 0).unsqueeze(1), one, other)
    found = learn_programs(FullDepth(stack, text), programs, asked, LAYERS)
    assert list(found) == [2, 3], "nothing is to be learnt of places that all skip, or none"
    assert all(predictor.r2 > 0.5 for predictor in found.values())
    new, kind = windows(10, seed=2)
    states = FullDepth(stack, new).into(2)[:, :5].mean(dim=1)
    for place, skips in ((2, kind == 0), (3, kind == 1)):
        assert torch.equal(found[place](states) < 0, skips)


@pytest.mark.parametrize("unit", UNITS)
def test_programs_are_served_as_they_were_fitted(unit):
    model, asked = plain(), config(**PROGRAMS, unit=unit, budget=0.5)
    text = mixed(24, seed=0)
    found = fit_arms(
        model, asked, statistics=text, selection=ids(8, seed=3), own=ids(0), controls=("early_exit",)
    )
    count = round(0.5 * len(found.skip.places()))
    assert sum(found.policy.rates().values()) == pytest.approx(count), "each prompt skips as many places"
    stack = LayerStack(model, LENGTH, unit=unit)
    new = mixed(6, seed=1)
    expected = stack.logits(replay(stack, found.policy, stack.embed(new), new), new)
    with installed(model, found.policy, found.skip), torch.no_grad():
        with executed(model, "masked"):
            masked = model(new).logits
        with executed(model, "sparse"):
            sparse = model(new).logits
        decided = last_decision(model).choice
        assert torch.equal(decided[:, 5:], decided[:, 5:6].expand(-1, LENGTH - 5, -1))
        assert (decided[:, :5] == 1).all(), "the first tokens run"
        model(text)
        served = (last_decision(model).choice[:, 5] == 0).float().mean(dim=0)
    with installed(model, found.arms["early_exit"], found.skip), torch.no_grad():
        model(new)  # the control beside it decides by token, with a linear router
        assert last_decision(model).choice[:, -1].unique().tolist() == [0, 1]
    torch.testing.assert_close(masked, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sparse, masked, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(served, torch.tensor(list(found.policy.rates().values())), atol=1 / 24, rtol=0)


def test_a_search_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """And what comes after it finds its own notes, not those of steps within the search."""
    asked = config(**PROGRAMS, unit="mlp", budget=0.5, tokens_search=4 * LENGTH)
    best, searched = _Searched.best, []

    def fit(notes=None):
        return fit_arms(
            plain(),
            asked,
            statistics=mixed(24, 0),
            selection=ids(8, 3),
            own=ids(0),
            controls=(),
            journal=notes,
        ).policy

    def cut(self, *args, **options):
        searched.append(1)
        if len(searched) == 2:
            raise Cut
        return best(self, *args, **options)

    whole = fit()
    monkeypatch.setattr(journal, "EVERY", 0.0)
    monkeypatch.setattr(_Searched, "best", cut)
    with pytest.raises(Cut):
        fit(Journal(tmp_path))
    assert len(searched) == 2, "four windows at a time, of eight"
    resumed = fit(Journal(tmp_path))
    assert len(searched) == 3, "the first four are known"
    again = fit(Journal(tmp_path))
    assert len(searched) == 3
    for other in (resumed, again):
        assert other.rates() == whole.rates()
        for place, site in whole.sites.items():
            assert torch.equal(other.sites[place].skip.up, site.skip.up)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "per_layer"}, "for calibration.granularity: sequence, not per_layer"),
        ({"also": [0.5]}, "programs of one budget"),
    ],
)
def test_what_programs_cannot_be_is_told(changes, message):
    with pytest.raises(UserError, match=message):
        config(**{**PROGRAMS, **changes})


def test_where_all_places_go_there_is_one_program():
    asked = config(**PROGRAMS, layers=[4], budget=0.6)
    assert find_programs(ranked(asked), ids(3), asked, 1, silent).tolist() == [[True]] * 3
