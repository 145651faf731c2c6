"""The walk of families, caches and ways to decode: the text of decoding step by step without a cache, or a refusal.

A family joins by its line in ``skipping_models.py``, a cache or a way to decode by its line here.
"""

from functools import cache as remember

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from layerroute.errors import UserError
from layerroute.skipping import collect_decisions
from tests.parity.contracts import left_padded, tokens
from tests.parity.skipping_models import FAMILIES, OTHERS, VOCABULARY, plain, routed

UNCOUNTED = ("rwkv",)
"""Families that keep their past in something that nobody can count."""
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
    if form in ("sequence", "evict"):
        for call in (
            lambda: model.generate_batch(rows, **options),
            lambda: model.generate(**one(), **GREEDY, cache_implementation="paged"),
        ):
            with pytest.raises(UserError, match="continuous batching"):
                call()
        return
    with collect_decisions(model) as decisions:
        found = [result.generated_tokens for result in model.generate_batch(rows, **options).values()]
    for row, text in zip(rows, found, strict=True):
        alone = model.generate(torch.tensor([row]), **GREEDY, use_cache=False)[0, len(row) :]
        assert text == alone.tolist()
    assert int(decisions[0].valid.sum()) == sum(map(len, rows)), "what fills up the buffer is in no statistic"


@pytest.mark.parametrize("family", [*OTHERS])
def test_decisions_in_the_cache_are_those_without_one(family):
    """Also of rows whose padding differs, and after routing was off for a while."""
    from layerroute.skipping import last_decision, router_disabled

    model = model_of(family, "token")
    ids = tokens(1, 14, VOCABULARY)
    with torch.no_grad():
        out = model(ids, use_cache=False)
        choice = last_decision(model).choice
        name = next((k for k in ("past_key_values", "cache_params", "state") if k in model(ids[:, :2])), None)
        made = model(ids[:, :6], use_cache=True)
        past, pieces = made[name], []
        for at in range(6, 14):
            if family in UNCOUNTED:
                with pytest.raises(UserError, match="does not count tokens"):
                    model(ids[:, at : at + 1], **{name: past}, use_cache=True)
                return
            step = model(ids[:, at : at + 1], **{name: past}, use_cache=True)
            past = step[name]
            pieces.append(last_decision(model).choice)
    assert torch.equal(torch.cat(pieces, dim=1), choice[:, 6:])
    assert (step.logits[:, -1] - out.logits[:, -1]).abs().max() < 1e-3
    with torch.no_grad():
        with router_disabled(model):
            past = model(ids[:, :6], use_cache=True)[name]
        model(ids[:, 6:7], **{name: past}, use_cache=True)
    assert bool((last_decision(model).choice == 1).all()) == bool((choice[:, 6] == 1).all())
