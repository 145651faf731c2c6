import pytest
import torch

from layerroute.objectives import quadratic_budget, switch_loss
from layerroute.training.configuration import ObjectiveConfig
from layerroute.training.objective import training_loss


def test_terms_are_weighted_and_told_apart(make_decision) -> None:
    decision = make_decision([[[0, 1], [1, 1], [1, 1]]], p=0.7)
    config = ObjectiveConfig(balance_weight=0.01, budget_weight=2.0)
    terms = training_loss(config, torch.tensor(3.0), decision, rate=0.25)
    balance, budget = switch_loss(decision), quadratic_budget(decision, 0.25)
    assert terms.total.item() == pytest.approx(3.0 + 0.01 * balance.item() + 2.0 * budget.item())
    assert {name: value.item() for name, value in terms.parts.items()} == pytest.approx(
        {"lm_loss": 3.0, "balance_loss": balance.item(), "budget_loss": budget.item()}
    )
    terms.total.backward()
    assert decision.probabilities.grad is not None
    assert not any(value.requires_grad for value in terms.parts.values())


def test_a_term_without_weight_has_no_gradient(make_decision) -> None:
    decision = make_decision([[[0, 1]]])
    terms = training_loss(ObjectiveConfig(), torch.tensor(3.0, requires_grad=True), decision, rate=0.5)
    assert terms.total.item() == 3.0
    assert "budget_loss" not in terms.parts
    assert terms.parts["balance_loss"] > 0  # measured all the same
    terms.total.backward()
    assert decision.probabilities.grad is None


def test_a_model_without_routing_has_the_cross_entropy_alone() -> None:
    terms = training_loss(ObjectiveConfig(balance_weight=1.0), torch.tensor(2.0), None, rate=0.0)
    assert terms.total.item() == 2.0
    assert set(terms.parts) == {"lm_loss"}
