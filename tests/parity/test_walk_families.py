"""The walk of families, caches and ways to decode: the text of decoding step by step without a cache, or a refusal.

A family joins by its line in ``skipping_models.py``, a cache or a way to decode by its line here.
"""

import inspect
from contextlib import nullcontext
from functools import cache as remember

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from layerroute.errors import UserError
from layerroute.skipping import collect_decisions, last_decision, router_disabled
from tests.parity.contracts import assert_close, left_padded, tokens
from tests.parity.skipping_models import FAMILIES, LINEAR, OTHERS, VOCABULARY, plain, routed

NEW = 6
ROWS = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (5, 11)]
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
CACHES = ("dynamic", "static", "offloaded", "quantized")
FORMS = {
    "token": {},
    "per_layer": {"granularity": "per_layer"},
    "sequence": {"granularity": "sequence", "prefix_tokens": 8},
    "evict": {"kv": "evict"},
    "attention and mlp": {"unit": "attention+mlp"},
    "rate": {"serve": "rate"},
}


def batch():
    ids, mask = left_padded(ROWS)
    return {"input_ids": ids, "attention_mask": mask}


def one():
    return {"input_ids": ROWS[1][None]}


def sampled(model, **options):
    torch.manual_seed(11)
    return model.generate(**batch(), **options | {"do_sample": True, "top_k": 8, "temperature": 0.7})


def drafting(model, **options):
    """The routed model proposes, another one decides."""
    return plain("llama", seed=3).generate(**one(), **options, assistant_model=model)


def drafted_for(model, **options):
    return model.generate(**one(), **options, assistant_model=plain("llama", seed=3))


MODES = {
    "greedy, padded batch": lambda model, **options: model.generate(**batch(), **options),
    "beams": lambda model, **options: model.generate(**batch(), **options, num_beams=3),
    "sampled, two each": lambda model, **options: sampled(model, **options, num_return_sequences=2),
    "prefill in chunks": lambda model, **options: model.generate(**one(), **options, prefill_chunk_size=4),
    "prompt lookup": lambda model, **options: model.generate(**one(), **options, prompt_lookup_num_tokens=3),
    "drafted for": drafted_for,
    "drafts": drafting,
}
STEP_BY_STEP = {
    "prefill in chunks": lambda model: model.generate(**one(), **GREEDY, use_cache=False),
    "prompt lookup": lambda model: model.generate(**one(), **GREEDY, use_cache=False),
    "drafted for": lambda model: model.generate(**one(), **GREEDY, use_cache=False),
    "drafts": lambda model: plain("llama", seed=3).generate(**one(), **GREEDY, use_cache=False),
}
CASES = [
    *((family, "token", kind, mode) for family in FAMILIES | OTHERS for kind in CACHES for mode in MODES),
    *(
        (family, form, kind, mode)
        for family in ("llama", "mistral")
        for form in list(FORMS)[1:]
        for kind in CACHES
        for mode in MODES
    ),
]


@remember
def model_of(family, form):
    model = routed(family, **FORMS[form], execution="auto")
    model.generation_config.eos_token_id = None
    return model


@remember
def plain_of(family):
    return plain(family)


def step_by_step(model, mode):
    if mode in STEP_BY_STEP:
        return STEP_BY_STEP[mode](model)
    return MODES[mode](model, **GREEDY, use_cache=False)


@remember
def expected(family, form, mode):
    return step_by_step(model_of(family, form), mode)


def outcome(model, kind, mode):
    """The tokens, or the error."""
    try:
        return MODES[mode](model, **GREEDY, cache_implementation=kind)
    except Exception as error:
        return error


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_text_is_that_of_decoding_without_a_cache_or_it_is_refused(case):
    family, form, kind, mode = case
    found = outcome(model_of(family, form), kind, mode)
    if isinstance(found, UserError):
        assert "\n" not in str(found)
    elif isinstance(found, Exception):
        assert type(found) is type(outcome(plain_of(family), kind, mode)), f"only routed it fails: {found!r}"
    elif not torch.equal(found, expected(family, form, mode)):
        # MiniMax with padding and RecurrentGemma with beams: the model itself has another text with its cache.
        assert family in OTHERS
        model = plain_of(family)
        assert not torch.equal(outcome(model, kind, mode), step_by_step(model, mode)), (
            "only routed it differs"
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_continuous_batching_is_the_same_text_or_refused(family, form):
    if form not in ("token", "sequence", "evict") and family != "llama":
        pytest.skip("once is enough")
    model = model_of(family, form)
    rows = [row.tolist() for row in (*ROWS, ROWS[0][:3])]
    options = {
        "generation_config": GenerationConfig(**GREEDY, eos_token_id=None),
        "continuous_batching_config": ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64),
    }
    if form in ("sequence", "evict", "rate"):
        for call in (
            lambda: model.generate_batch(rows, **options),
            lambda: model.generate(**one(), **GREEDY, cache_implementation="paged"),
        ):
            with pytest.raises(UserError, match="continuous batching"):
                call()
        return
    if family in LINEAR:
        # transformers' own word, with a router or without
        with pytest.raises(ValueError, match="linear_attention"):
            model.generate_batch(rows, **options)
        return
    with collect_decisions(model) as decisions:
        found = [result.generated_tokens for result in model.generate_batch(rows, **options).values()]
    for row, text in zip(rows, found, strict=True):
        alone = model.generate(torch.tensor([row]), **GREEDY, use_cache=False)[0, len(row) :]
        assert text == alone.tolist()
    assert int(decisions[0].valid.sum()) == sum(map(len, rows)), "what fills up the buffer is in no statistic"


@torch.no_grad()
def stepped(model, ids, first, *, off=False):
    """Logits and decisions of one token after the other, after ``first`` at once (with routing switched off)."""
    given = inspect.signature(model.forward).parameters

    def call(start, stop, **past):
        # MiniMax's cache does not count, and neither does MiniMax.
        where = {"position_ids": torch.arange(start, stop)[None]} if "position_ids" in given else {}
        return model(ids[:, start:stop], **where, **past, use_cache=True)

    with router_disabled(model) if off else nullcontext():
        out = call(0, first)
    name = next(key for key in ("past_key_values", "cache_params", "state") if key in out)
    logits, choices = [], []
    for at in range(first, ids.shape[1]):
        out = call(at, at + 1, **{name: out[name]})
        logits.append(out.logits)
        choices.append(last_decision(model).choice)
    return torch.cat(logits, dim=1), torch.cat(choices, dim=1)


@pytest.mark.parametrize("family", [family for family in OTHERS if family not in ("rwkv", "recurrent_gemma")])
def test_decisions_in_the_cache_are_those_without_one(family):
    """RecurrentGemma hands out no cache."""
    model, ids = model_of(family, "token"), tokens(1, 14, VOCABULARY)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    choice = last_decision(model).choice
    assert not bool(choice[:, 6:].all())
    logits, found = stepped(model, ids, 6)
    assert torch.equal(found, choice[:, 6:])
    assert_close(logits, expected[:, 6:], family)
    assert not bool(stepped(model, ids, 6, off=True)[1].all()), "positions went on while routing was off"


def test_a_past_that_nobody_can_count_is_refused():
    model = model_of("rwkv", "token")
    with pytest.raises(UserError, match="does not count tokens"):
        stepped(model, tokens(1, 9, VOCABULARY), 6)
