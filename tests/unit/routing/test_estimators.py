import pytest
import torch

from layerroute.errors import UserError
from layerroute.routing import ESTIMATORS, estimate
from layerroute.routing.estimators import STRAIGHT_THROUGH, Surrogate, gumbel_noise, training_noise


@pytest.mark.parametrize("name", ESTIMATORS)
def test_inference_is_argmax_without_noise(name):
    logits = torch.randn(3, 50, 2, 2)
    first = estimate(name, logits, training=False, temperature=0.3)
    assert torch.equal(first.choice, logits.argmax(-1))
    assert torch.equal(first.gate, torch.nn.functional.one_hot(first.choice, 2).float())
    assert torch.equal(first.probabilities, logits.softmax(-1))


def test_threshold_moves_the_choice_but_not_the_probabilities():
    logits = torch.tensor([[[[0.0, 1.0]]]])
    assert estimate("sigmoid_st", logits, training=False, threshold=torch.tensor([0.5])).choice.item() == 1
    above = estimate("sigmoid_st", logits, training=False, threshold=torch.tensor([1.5]))
    assert above.choice.item() == 0
    assert torch.equal(above.probabilities, logits.softmax(-1))


def test_ties_go_to_the_cheap_path():
    assert estimate("sigmoid_st", torch.zeros(1, 1, 1, 2), training=False).choice.item() == 0


def test_gumbel_choices_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0]).expand(1, 200_000, 1, 2)
    result = estimate("gumbel_st", logits, training=True, noise=gumbel_noise(logits))
    assert result.choice.float().mean().item() == pytest.approx(
        torch.sigmoid(torch.tensor(1.0)).item(), abs=0.005
    )


@pytest.mark.parametrize("name", ["gumbel_st", "sigmoid_st"])
def test_straight_through_is_hard_forward_and_soft_backward(name):
    logits = torch.randn(2, 9, 3, 2, requires_grad=True)
    noise = training_noise(name, logits.detach())
    result = estimate(name, logits, training=True, temperature=0.7, noise=noise)
    assert torch.equal(result.gate.detach().round(), torch.nn.functional.one_hot(result.choice, 2).float())
    weight = torch.randn_like(result.gate)
    (result.gate * weight).sum().backward()
    reference = logits.detach().clone().requires_grad_()
    soft = ((reference if noise is None else reference + noise) / 0.7).softmax(-1)
    (soft * weight).sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_a_surrogate_moves_the_gradient_and_leaves_the_choice(name):
    logits = torch.randn(2, 9, 3, 2, requires_grad=True)
    noise, everywhere = training_noise(name, logits.detach()), torch.full((3,), -9.0)
    threshold, unit = torch.randn(3), torch.rand(3) + 0.5
    plain = estimate(name, logits.detach(), training=True, threshold=everywhere, noise=noise)
    result = estimate(
        name, logits, training=True, threshold=everywhere, noise=noise, surrogate=Surrogate(threshold, unit)
    )
    assert torch.equal(result.choice, plain.choice) and result.choice.all()
    torch.testing.assert_close(result.gate.detach(), plain.gate)
    weight = torch.randn_like(result.gate)
    (result.gate * weight).sum().backward()
    reference = logits.detach().clone().requires_grad_()
    moved = (reference if noise is None else reference + noise) - torch.stack(
        [torch.zeros(3), threshold], dim=-1
    )
    ((moved / unit[:, None]).softmax(-1) * weight).sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def test_selected_gates_only_the_chosen_path():
    logits = torch.randn(2, 9, 3, 2, requires_grad=True)
    result = estimate("selected", logits, training=True)
    one_hot = torch.nn.functional.one_hot(result.choice, 2).float()
    assert torch.equal(result.gate.detach(), one_hot)
    # Gradient of the gate is that of p / stop_gradient(p) at the chosen path and nothing at the others.
    weight = torch.randn_like(result.gate)
    (result.gate * weight).sum().backward()
    reference = logits.detach().clone().requires_grad_()
    p = reference.softmax(-1)
    ((p / p.detach()) * one_hot * weight).sum().backward()
    torch.testing.assert_close(logits.grad, reference.grad)


def test_soft_is_a_mixture_in_training_only():
    logits = torch.randn(1, 5, 1, 2)
    assert torch.equal(estimate("soft", logits, training=True).gate, logits.softmax(-1))


def test_reinforce_samples_and_carries_no_gradient():
    torch.manual_seed(0)
    logits = torch.zeros(1, 20_000, 1, 2, requires_grad=True)
    result = estimate("reinforce", logits, training=True, noise=training_noise("reinforce", logits))
    assert result.choice.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not result.gate.requires_grad
    assert result.probabilities.requires_grad


def test_forced_choices_get_their_own_gates():
    logits = torch.randn(2, 4, 1, 2)
    choice = torch.randint(0, 2, (2, 4, 1))
    for name in ("gumbel_st", "sigmoid_st", "selected"):
        result = estimate(name, logits, training=True, forced=choice)
        assert torch.equal(result.choice, choice)
        torch.testing.assert_close(result.gate, torch.nn.functional.one_hot(choice, 2).float())


def test_unknown_name_is_told_the_nearest():
    with pytest.raises(UserError, match="gumbel_st"):
        estimate("gumble", torch.zeros(1, 1, 1, 2), training=False)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[[0.0, 200.0]]], [[[0.0, -200.0]]]], requires_grad=True)
    for name in ("gumbel_st", "sigmoid_st", "selected", "soft"):
        logits.grad = None
        estimate(name, logits, training=True, temperature=0.5).gate.sum().backward()
        assert logits.grad.isfinite().all()
