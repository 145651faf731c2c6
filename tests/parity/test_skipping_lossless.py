"""Lossless decoding: full depth's own tokens, and a cache without anything of the draft's."""

import pytest
import torch

from layerroute.errors import UserError
from layerroute.skipping import (
    collect_decisions,
    executed,
    forced,
    generate_lossless,
    get_router,
    lossless,
    router_disabled,
)
from tests.parity.contracts import TOLERANCE, tokens
from tests.parity.skipping_models import VOCABULARY, plain, routed
from tests.parity.test_skipping import WHO


def greedy(model, ids: torch.Tensor, new: int, eos: int | None = None) -> list[int]:
    """Greedy decoding at full depth by whole passes."""
    text = ids
    with torch.no_grad(), router_disabled(model):
        for _ in range(new):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
            if eos is not None and text[0, -1] == eos:
                break
    return text[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("draft_tokens", [1, 3, 8])
def test_output_is_full_depths_own(family, draft_tokens):
    model = routed(family)
    for seed in range(3):
        ids = tokens(1, 5 + 4 * seed, VOCABULARY, seed=seed)
        result = generate_lossless(model, ids, max_new_tokens=20, draft_tokens=draft_tokens, confidence=0.0)
        assert result.tokens == greedy(model, ids, 20)
        assert 0 <= result.accepted <= result.drafted


@pytest.mark.parametrize("unit", ["block", "attention", "mlp", "attention+mlp"])
@pytest.mark.parametrize("who", WHO)
def test_whoever_decides_and_whatever_is_skipped(unit, who):
    model = routed(unit=unit, **WHO[who])
    ids = tokens(1, 9, VOCABULARY)
    assert generate_lossless(model, ids, max_new_tokens=16).tokens == greedy(model, ids, 16)


@pytest.mark.parametrize("rate", [0, 0.3, 1])
def test_a_draft_like_full_depth_is_accepted_and_one_that_is_not_does_no_harm(rate):
    model = routed()
    ids = tokens(1, 6, VOCABULARY)
    with forced(model, rate):
        result = generate_lossless(model, ids, max_new_tokens=24, draft_tokens=4, confidence=0.0)
    assert result.tokens == greedy(model, ids, 24)
    if rate == 1:
        assert result.acceptance == 1.0 and result.passes == 1 + 5  # 23 tokens in blocks of 5
        assert result.tokens_per_pass == 4.0
    else:
        assert result.acceptance < 1.0


def test_the_cache_holds_full_depths_keys_only(monkeypatch):
    """Before each verification the cache is what full depth alone would have left, draft after draft."""
    model = routed()
    ids = tokens(1, 7, VOCABULARY)
    honest, seen = lossless._verify, []

    def checked(model, block, cache, result):
        chosen = honest(model, block, cache, result)
        seen.append(cache.get_seq_length())
        text = torch.cat([ids, torch.tensor([result.tokens], dtype=torch.long)], dim=1)
        known = text.shape[1]
        with torch.no_grad(), router_disabled(model):
            expected = model(text, use_cache=True).past_key_values
        for held, fresh in zip(cache.layers, expected.layers, strict=True):
            for mine, theirs in ((held.keys, fresh.keys), (held.values, fresh.values)):
                assert (mine[..., :known, :] - theirs).abs().max() < TOLERANCE * max(1, theirs.abs().max())
        return chosen

    monkeypatch.setattr(lossless, "_verify", checked)
    with forced(model, 0.4):
        result = generate_lossless(model, ids, max_new_tokens=15, draft_tokens=3, confidence=0.0)
    assert len(seen) == result.passes > 4


def test_drafts_are_routed_and_verification_is_not():
    model = routed()
    ids = tokens(1, 6, VOCABULARY)
    with collect_decisions(model) as decisions, forced(model, 0), executed(model, "sparse"):
        result = generate_lossless(model, ids, max_new_tokens=9, draft_tokens=2, confidence=0.0)
    assert len(decisions) == result.drafted
    assert all(decision.choice.shape[1] == 1 and not decision.choice.any() for decision in decisions)
    assert get_router(model).enabled


def test_stops_after_the_end_of_the_text():
    model = routed()
    ids = tokens(1, 6, VOCABULARY)
    text = greedy(model, ids, 20)
    eos = text[7]
    handed: list[int] = []
    result = generate_lossless(
        model, ids, max_new_tokens=20, eos_token_ids=[eos], on_tokens=handed.extend, draft_tokens=6
    )
    assert result.tokens == handed == greedy(model, ids, 20, eos)
    assert generate_lossless(model, ids, max_new_tokens=1).tokens == text[:1]


def test_an_unsure_draft_ends_early():
    model = routed()
    ids = tokens(1, 6, VOCABULARY)
    patient = generate_lossless(model, ids, max_new_tokens=12, draft_tokens=5, confidence=0.0)
    wary = generate_lossless(model, ids, max_new_tokens=12, draft_tokens=5, confidence=1.0)
    assert wary.tokens == patient.tokens
    assert (
        wary.drafted == wary.passes - 1 or wary.drafted == wary.passes - 2
    )  # one a pass, none before the last token


def test_refusals():
    with pytest.raises(UserError, match="needs kv: project"):
        generate_lossless(routed(kv="evict"), tokens(1, 4, VOCABULARY))
    with pytest.raises(UserError, match="one prompt"):
        generate_lossless(routed(), tokens(2, 4, VOCABULARY))
    with pytest.raises(UserError, match="at least 1"):
        generate_lossless(routed(), tokens(1, 4, VOCABULARY), draft_tokens=0)
    with pytest.raises(UserError, match="no router"):
        generate_lossless(plain(), tokens(1, 4, VOCABULARY))


def test_cropping_what_waits_is_cropping_what_was_projected():
    from transformers import DynamicCache

    model = routed()
    ids = tokens(2, 12, VOCABULARY)
    caches = []
    for execution in ("masked", "sparse"):
        cache = DynamicCache()
        with torch.no_grad(), executed(model, execution), forced(model, 0):
            for start, stop in ((0, 5), (5, 6), (6, 9)):
                model(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache.crop(-2)
            model(ids[:, 7:12], past_key_values=cache, use_cache=True)
            cache.crop(-6)
        caches.append(cache)
    for held, fresh in zip(caches[1].layers, caches[0].layers, strict=True):
        assert held.get_seq_length() == 6 == held.keys.shape[-2]
        assert torch.allclose(held.keys, fresh.keys, atol=1e-4) and torch.allclose(
            held.values, fresh.values, atol=1e-4
        )
