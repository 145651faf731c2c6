from dataclasses import replace

import torch

from layerroute.skipping.calibration import CalibrationConfig
from layerroute.skipping.calibration.costs import LayerCosts
from layerroute.skipping.calibration.in_order import Policy, calibrate_in_order, replay
from layerroute.skipping.calibration.sensitivity import cost_weights, probe
from layerroute.skipping.calibration.stack import LayerStack
from tests.parity.skipping_models import VOCABULARY, plain

LENGTH = 32


def test_weights_of_planted_costs_are_found():
    torch.manual_seed(0)
    influence, sensitivity = torch.randn(800), 2 * torch.randn(800)
    cost = (0.7 * influence + 1.3 * sensitivity - 4 + 0.1 * torch.randn(800)).exp()
    falling = (-0.5 * influence + 0.8 * sensitivity).exp()

    def costs(values):
        return LayerCosts(cost=values, score=influence, influence=influence)

    found = cost_weights({3: costs(cost), 5: costs(falling)}, sensitivity)
    torch.testing.assert_close(torch.tensor(found[3]), torch.tensor([0.7, 1.3]), atol=0.1, rtol=0)
    assert found[5][0] == 0.0, "more influence never makes a token cheaper"


def test_a_probe_is_the_divergence_of_the_disturbed_model_and_predictors_learn_it():
    model = plain()
    stack = LayerStack(model, LENGTH)
    config = CalibrationConfig(
        budget=0.3, layers=[2, 3, 4, 5], router_layer=2, rank=4, length=LENGTH, tokens_statistics=LENGTH * 16
    )
    ids = torch.randint(2, VOCABULARY, (40, LENGTH), generator=torch.Generator().manual_seed(0))
    final = []
    none = dict.fromkeys([2, 3, 4, 5], 0.0)
    start = calibrate_in_order(stack, ids, none, config, fit_all=True, final=final)
    embedded = stack.embed(ids)
    full = replay(stack, Policy(), embedded, ids)
    torch.testing.assert_close(final[0], full)
    chance = replace(start, chooser="random").with_rates(dict.fromkeys(none, 0.5))
    found = probe(stack, chance, ids, full)
    assert found.shape == ids.shape
    logs = [stack.logits(x, ids).log_softmax(-1) for x in (replay(stack, chance, embedded, ids), full)]
    expected = torch.nn.functional.kl_div(*logs, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found, expected.clamp_min(1e-5).log(), rtol=1e-3, atol=1e-3)

    states = embedded
    for layer in range(2):
        states = stack.run(layer, states)
    planted = states @ torch.randn(32, generator=torch.Generator().manual_seed(1))
    weights = dict.fromkeys(none, (0.0, 1.0))
    rates = {2: 0.5, 3: 0.0, 4: 0.0, 5: 0.0}
    policy = calibrate_in_order(stack, ids, rates, config, sensitivity=planted, weights=weights)
    predicted = policy.sites[2].predictor(states)[:, 1:].flatten()
    assert torch.corrcoef(torch.stack([predicted, planted[:, 1:].flatten()]))[0, 1] > 0.95
