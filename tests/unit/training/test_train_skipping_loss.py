"""The loss of layer skipping is the sum of its terms, and each is counted once."""

import pytest
import torch

from layerroute.routing.module import RoutingConfig
from layerroute.training.skipping.configuration import SkippingObjectiveConfig
from layerroute.training.skipping.loss import SkippingLoss
from tests.parity.skipping_models import routed

GUMBEL = {"routing": RoutingConfig(estimator="gumbel_st", rate=0.6)}
POLICY = {"granularity": "batch", "routing": RoutingConfig(estimator="reinforce", rate=0.6)}


def terms(skip, done=0.5, **weights):
    model = routed(**skip).train()
    loss = SkippingLoss(SkippingObjectiveConfig(**weights), rate=0.6)
    torch.manual_seed(0)
    ids = torch.randint(3, 60, (2, 12))
    return loss(model, {"input_ids": ids, "labels": ids}, rate=0.6, done=done)[0]


@pytest.mark.parametrize(("done", "ramp"), [(0.05, 0.5), (0.5, 1.0)])
def test_the_whole_is_the_weighted_sum(done, ramp):
    weights = {"ce_weight": 0.3, "kd_weight": 0.7, "activity_weight": 5.0, "budget_weight": 8.0}
    found = terms(GUMBEL, done, budget_begin=0.1, **weights)
    parts = found.parts
    expected = 0.3 * parts["lm_loss"] + 0.7 * parts["kd_loss"]
    expected += ramp * (5.0 * parts["activity"] + 8.0 * parts["budget_loss"])
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5)
    assert all(float(part) > 0 for part in parts.values())


def test_distillation_waits_for_its_begin():
    assert "kd_loss" not in terms(GUMBEL, 0.1, kd_begin=0.2).parts
    assert "kd_loss" in terms(GUMBEL, 0.2, kd_begin=0.2).parts


def test_the_teacher_has_no_dropout():
    model = routed(**GUMBEL).train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    inputs = {"input_ids": torch.randint(3, 60, (2, 12))}
    loss = SkippingLoss(SkippingObjectiveConfig(), rate=0.6)
    first, second = (loss._teacher(model, inputs) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_multiplier_baseline_and_budget_move_once_a_step_however_many_parts_it_has(parts):
    ids = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    weights = {"policy_weight": 1.0, "lagrangian_step": 0.5, "kd_weight": 0.0, "ce_weight": 1.0}
    loss = SkippingLoss(SkippingObjectiveConfig(**weights), rate=0.1)
    model = routed(**POLICY).eval()  # it then decides in the second step as in the first
    used, costs = [], []
    for _ in range(2):
        for rows in ids.chunk(parts):
            terms, decision, _ = loss(model, {"input_ids": rows, "labels": rows}, rate=0.1, done=0.5)
            used.append(float(decision.cost_weighted_rate()))
            costs.append(float(terms.parts["lm_loss"]))
        loss.step_ended()
    state = loss.state_dict()
    expected = 2 * 0.5 * (sum(used) / len(used) - 0.1)
    assert state["lagrangian"]["multiplier"] == pytest.approx(expected, rel=1e-5)
    assert (state["steps"], state["policy"]["updates"]) == (2, 2)
    assert state["policy"]["baseline"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_a_policy_pays_for_compute_in_its_cost_alone():
    weights = {"ce_weight": 1.0, "kd_weight": 0.0, "policy_weight": 1.0, "activity_weight": 3.0}
    found = terms(POLICY, **weights)
    expected = found.parts["lm_loss"] + found.parts["policy_loss"]
    assert float(found.total) == pytest.approx(float(expected), rel=1e-6)
    assert float(found.parts["activity"]) > 0
