from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from layerroute.objectives import (
    Lagrangian,
    PolicyGradient,
    cross_entropy,
    distillation_loss,
    mean_activity,
    quadratic_budget,
    shift_labels,
    switch_loss,
    token_cross_entropy,
)
from layerroute.routing import RouteDecision, RoutingConfig
from layerroute.routing.module import Routing
from tests.unit.routing.test_decision import make


def test_cross_entropy_ignores_padding_and_equals_torch():
    logits, labels = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    labels[0, :3] = -100
    targets = shift_labels(labels)
    assert targets[:, -1].tolist() == [-100, -100]
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(cross_entropy(logits, targets), expected)
    per_token = token_cross_entropy(logits, targets)
    torch.testing.assert_close(per_token.sum() / (targets != -100).sum(), expected)
    assert cross_entropy(logits, targets, count=1).item() == pytest.approx(per_token.sum().item(), rel=1e-5)


def test_a_batch_without_targets_is_zero_not_nan():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 3), -100))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad.abs().sum() == 0
    assert cross_entropy(logits, torch.full((1, 3), -100), count=0).item() == 0.0


def test_switch_loss_is_one_when_balanced_and_two_when_collapsed():
    balanced = make([[[0, 1], [1, 0]]])
    assert switch_loss(balanced).item() == pytest.approx(1.0)
    collapsed = make([[[1, 1], [1, 1]]])
    assert switch_loss(collapsed).item() == pytest.approx(2 * 0.75)


def test_switch_loss_ignores_padding_and_pushes_towards_balance():
    torch.manual_seed(0)
    routing = Routing(RoutingConfig(initial_bias=2.0), 4, sites=["a"], paths=["gdn", "softmax"]).eval()
    valid = torch.ones(1, 64, dtype=torch.bool)
    positions = torch.arange(64)[None]
    hidden = torch.randn(1, 64, 4)
    loss = switch_loss(routing(hidden, valid=valid, positions=positions))
    loss.backward()
    assert routing.router.layers[-1].bias.grad.item() > 0, "descent must lower the favoured path's logit"
    half = valid.clone()
    half[:, 32:] = False
    short = switch_loss(routing(hidden[:, :32], valid=valid[:, :32], positions=positions[:, :32]))
    torch.testing.assert_close(switch_loss(routing(hidden, valid=half, positions=positions)), short)


def test_compute_penalties():
    decision = make([[[1, 0], [1, 0]]])  # probability of softmax: 0.75 at the first site, 0.25 at the second
    assert mean_activity(decision).item() == pytest.approx(0.5)
    weighted = (0.75 * 1 + 0.25 * 3) / 4
    assert quadratic_budget(decision, 0.1).item() == pytest.approx((weighted - 0.1) ** 2)


def test_lagrangian_grows_only_while_over_budget():
    over, under = make([[[1, 1], [1, 1]]]), make([[[0, 0], [0, 0]]])
    term = Lagrangian(0.25, step=0.5)
    assert term(over).item() == 0.0
    term.update(over.cost_weighted_rate())
    assert term.multiplier.item() == pytest.approx(0.375)
    assert term(over).item() > 0
    for _ in range(5):
        term.update(under.cost_weighted_rate())
    assert term.multiplier.item() == 0.0


def test_the_lagrangian_may_move_before_the_backward_pass():
    weights = torch.zeros(1, 2, 2, 2, requires_grad=True)
    decision = make([[[1, 1], [1, 1]]])
    decision = replace(decision, probabilities=decision.probabilities + weights)
    term = Lagrangian(0.25, step=0.5)
    term.update(decision.cost_weighted_rate())
    penalty = term(decision)
    term.update(decision.cost_weighted_rate())
    penalty.backward()
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


def test_distillation_is_zero_for_equals_and_kl_otherwise():
    teacher = torch.randn(2, 3, 7)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    assert distillation_loss(teacher, teacher, valid).item() == pytest.approx(0.0, abs=1e-6)
    student = torch.randn(2, 3, 7, requires_grad=True)
    p, q = (teacher[valid] / 2).softmax(-1), (student[valid] / 2).softmax(-1)
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, valid, temperature=2.0), expected)


def test_policy_gradient_learns_the_cheaper_path():
    torch.manual_seed(0)
    routing = Routing(RoutingConfig(estimator="reinforce"), 2, sites=["a"], paths=["gdn", "softmax"]).train()
    objective = PolicyGradient()
    optimizer = torch.optim.SGD(routing.parameters(), lr=0.5)
    valid, positions = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    for _ in range(200):
        decision = routing(torch.ones(1, 1, 2), valid=valid, positions=positions)
        cost = decision.choice.float().mean()  # softmax costs 1, gdn 0
        loss = objective(decision, cost)
        objective.update(cost)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert decision.probabilities[0, 0, 0, 1].item() < 0.2


def test_objectives_take_no_part_of_a_models_internals():
    assert set(RouteDecision.__dataclass_fields__) == {
        "probabilities", "choice", "valid", "sites", "paths", "costs", "gate", "causal",
    }  # fmt: skip
