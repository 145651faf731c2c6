import numpy as np
import pytest
import torch

from layerroute.evaluation.token_routes import (
    LONGEST,
    SHORTEST,
    choose_sentences,
    collect_token_routes,
    sentences,
    token_counts,
)
from layerroute.hybrid import HybridConfig, HybridForCausalLM

WORDS = [f" w{index}" for index in range(28)] + [".", "\n"]


class Words:
    """A tokenizer whose tokens are words."""

    def decode(self, ids: list[int]) -> str:
        return "".join(WORDS[index] for index in ids)


def make(pattern: list[str]) -> HybridForCausalLM:
    torch.manual_seed(0)
    config = HybridConfig(vocab_size=30, hidden_size=16, num_attention_heads=2, layer_pattern=pattern)
    return HybridForCausalLM(config)


def test_sentences_end_where_lines_or_sentences_do() -> None:
    inner = ["a"] * 9 + ["."]
    texts = [
        "cut",
        "off",
        ".",
        *inner,
        *["b"] * (LONGEST + 1),
        "\n",
        "c",
        "d",
        "?",
        *["e"] * SHORTEST,
        "!",
        "open",
    ]
    assert sentences(texts) == [(3, 13), (len(texts) - SHORTEST - 2, len(texts) - 1)]


def test_chosen_sentences_differ() -> None:
    one, two = [f"x{i}" for i in range(10)], [f"y{i}" for i in range(10)]
    first, same, other = ([".", *body, "."] for body in (one, one, two))
    spans = choose_sentences([first, same, other], 5)
    assert [span.window for span in spans] == [0, 2]
    assert len(choose_sentences([first, other], 1)) == 1


def test_routes_are_those_of_the_whole_window() -> None:
    model = make(["gdn", "routed", "routed", "softmax"]).train()
    draw = torch.Generator().manual_seed(3)
    windows = torch.randint(0, 28, (3, 40), generator=draw)
    windows[:, [4, 20]] = 28  # full stops: one sentence of 16 tokens in each window
    seen = token_counts(np.array([1, 1, 28, 29], dtype=np.uint16), 30)
    assert (seen[1], seen[2], seen[28], len(seen)) == (2, 0, 1, 30)
    found = collect_token_routes(model, Words(), windows, count=2, seen=seen)
    assert found["sites"] == ["layer1.mixer", "layer2.mixer"]
    assert found["paths"] == ["gdn", "softmax"]
    assert len(found["sentences"]) == 2
    with torch.no_grad():
        decision = model.eval()(input_ids=windows[:1], use_cache=False).decision
    sentence = found["sentences"][0]
    assert sentence["start"] == 5
    assert sentence["seen"] == [seen[index] for index in windows[0, 5:21].tolist()]
    with torch.no_grad():
        logits = model(input_ids=windows[:1], use_cache=False).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[4:20], windows[0, 5:21], reduction="none")
    assert sentence["loss"] == pytest.approx(losses.tolist(), abs=1e-4)
    assert sentence["tokens"] == [WORDS[index] for index in windows[0, 5:21].tolist()]
    assert sentence["choice"] == decision.choice[0, 5:21].tolist()
    expected = decision.probabilities[0, 5:21, :, 1].tolist()
    assert [p for row in sentence["probability"] for p in row] == pytest.approx(
        [p for row in expected for p in row], abs=1e-6
    )


@pytest.mark.parametrize(("count", "lengths"), [(4, [50, 50]), (1, [50])])
def test_of_text_without_sentences_whole_windows_are_shown(count: int, lengths: list[int]) -> None:
    windows = torch.ones(2, 50, dtype=torch.long)
    found = collect_token_routes(make(["gdn", "routed"]), Words(), windows, count=count)
    assert [len(sentence["tokens"]) for sentence in found["sentences"]] == lengths
    assert found["sentences"][0]["loss"][0] is None, "nothing predicts a window's first token"
    assert "seen" not in found["sentences"][0]


def test_a_model_without_routing_has_no_routes() -> None:
    assert collect_token_routes(make(["gdn"]), Words(), torch.ones(2, 50, dtype=torch.long)) is None
