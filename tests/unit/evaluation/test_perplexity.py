import math

import pytest
import torch

from layerroute.evaluation.perplexity import evaluate
from layerroute.hybrid import HybridConfig, HybridForCausalLM
from layerroute.objectives.language_model import IGNORE


@pytest.fixture(scope="module")
def model() -> HybridForCausalLM:
    torch.manual_seed(0)
    return HybridForCausalLM(HybridConfig(vocab_size=30, hidden_size=16, num_attention_heads=2))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(1, 30, (4, 12), generator=torch.Generator().manual_seed(1))


def test_it_is_the_mean_cross_entropy_of_real_tokens(model, ids) -> None:
    result = evaluate(model, [{"input_ids": ids}])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert result.loss == pytest.approx(float(expected), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.accuracy == pytest.approx(float((logits[:, :-1].argmax(-1) == ids[:, 1:]).double().mean()))
    assert result.tokens == 4 * 11
    assert result.routing is not None
    assert result.routing.tokens == 4 * 12


def test_batches_of_any_size_give_the_same(model, ids) -> None:
    whole = evaluate(model, [{"input_ids": ids}])
    parts = evaluate(model, [{"input_ids": row} for row in ids.split(1)])
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.accuracy == whole.accuracy
    assert parts.routing.rate == whole.routing.rate


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nowhere(model, ids, side) -> None:
    plain = evaluate(model, [{"input_ids": ids}])
    pad = torch.zeros(4, 5, dtype=torch.long)
    ones = torch.ones_like(ids)
    order = (pad, ids) if side == "left" else (ids, pad)
    masks = (pad, ones) if side == "left" else (ones, pad)
    padded = evaluate(model, [{"input_ids": torch.cat(order, 1), "attention_mask": torch.cat(masks, 1)}])
    assert padded.tokens == plain.tokens
    assert padded.loss == pytest.approx(plain.loss, rel=1e-5)
    assert padded.accuracy == plain.accuracy
    assert padded.routing.rate == plain.routing.rate
    assert padded.routing.tokens == plain.routing.tokens


def test_ignored_labels_are_not_scored(model, ids) -> None:
    labels = ids.clone()
    labels[:, :6] = IGNORE
    result = evaluate(model, [{"input_ids": ids, "labels": labels}])
    assert result.tokens == 4 * 6
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(model, [{"input_ids": ids, "labels": torch.full_like(ids, IGNORE)}])


def test_there_is_no_noise_and_the_mode_comes_back(model, ids) -> None:
    model.train()
    first, second = (evaluate(model, [{"input_ids": ids}]) for _ in range(2))
    assert model.training
    assert (first.loss, first.accuracy, first.routing) == (second.loss, second.accuracy, second.routing)
    done = []
    evaluate(model, [{"input_ids": ids}, {"input_ids": ids[:1]}], on_batch=done.append)
    assert done == [4, 1]


def test_an_overflowing_perplexity_is_infinite(model, ids) -> None:
    from layerroute.evaluation.perplexity import Evaluation

    assert (
        Evaluation(
            loss=800.0, accuracy=0.0, tokens=1, window_losses=[], by_position=[], routing=None, seconds=0.0
        ).perplexity
        == math.inf
    )


def test_loss_by_position_is_that_of_the_places(model, ids) -> None:
    result = evaluate(model, [{"input_ids": ids[:, :9]}, {"input_ids": ids[:2]}])
    assert [(one["from"], one["to"]) for one in result.by_position] == [
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 8),
        (9, 12),
    ]
    assert [one["tokens"] for one in result.by_position] == [6, 6, 12, 6 * 4, 2 * 3]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    by_token = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    expected = torch.cat([by_token[:, 2:4].flatten(), by_token[:2, 2:4].flatten()]).mean()
    assert result.by_position[2]["loss"] == pytest.approx(float(expected), rel=1e-5)
    total = sum(one["loss"] * one["tokens"] for one in result.by_position)
    assert total / result.tokens == pytest.approx(result.loss, rel=1e-6)
    padded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert evaluate(model, [padded]).by_position == []
