"""Contracts of layer skipping: degenerate routing, masked against sparse, caches, padding, causality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import StaticCache

from layerroute.routing import RoutingConfig, set_serve
from layerroute.skipping import (
    collect_decisions,
    executed,
    forced,
    get_router,
    last_decision,
    remove_router,
    router_disabled,
)
from layerroute.skipping.cache_layers import DeferringLayer
from layerroute.skipping.routes import TokenIndex
from tests.parity import contracts
from tests.parity.contracts import assert_close, cached_logits, left_padded, tokens
from tests.parity.skipping_models import FAMILIES, LAYERS, VOCABULARY, plain, random_choice, routed

UNITS = ["block", "attention", "mlp", "attention+mlp"]
FORMS = [(unit, kv) for unit in UNITS for kv in ("project", "evict") if (unit, kv) != ("mlp", "evict")]
_HELD = RoutingConfig(router="mlp", rate=0.05)  # far from what the thresholds give
WHO = {
    "token": {"granularity": "token"},
    "per_layer": {"granularity": "per_layer"},
    "sequence": {"granularity": "sequence", "prefix_tokens": 3},
    "token_held": {"granularity": "token", "serve": "rate", "routing": _HELD},
    "per_layer_held": {
        "granularity": "per_layer",
        "history": 2,
        "skip_path": "non_linear",
        "serve": "rate:0.02",
        "routing": _HELD,
    },
}
HELD = [who for who in WHO if who.endswith("held")]


@torch.no_grad()
def logits(model, ids, execution, **kwargs):
    with executed(model, execution):
        return model(ids, use_cache=False, **kwargs).logits


@torch.no_grad()
def chunked(model, ids, execution, cuts, mask=None):
    with executed(model, execution):
        return cached_logits(model, ids, cuts, mask)


def sites(model) -> int:
    return len(get_router(model).sites)


# Contract 3: degenerate routing


@pytest.mark.parametrize("family", FAMILIES)
def test_all_run_is_the_base_and_disabled_is_the_base_bit_for_bit(family):
    ids = tokens(2, 17, VOCABULARY)
    base = plain(family)
    with torch.no_grad():
        expected = base(ids).logits
    model = routed(family)
    with forced(model, random_choice(2, 17, sites(model))):
        assert (logits(model, ids, "masked") - expected).abs().max() > 0.1, "routing must matter"
    for execution in ("masked", "sparse", "auto"):
        with forced(model, 1):
            assert_close(logits(model, ids, execution), expected, f"all tokens run, {execution}")
    with router_disabled(model):
        assert torch.equal(logits(model, ids, "auto"), expected)
    assert type(model) is type(base)
    assert set(base.state_dict()) <= set(model.state_dict()), "the base's parameters keep their names"
    remove_router(model)
    assert torch.equal(logits_of(model, ids), expected)
    assert {type(m) for m in model.modules()} == {type(m) for m in base.modules()}


@torch.no_grad()
def logits_of(model, ids):
    return model(ids).logits


# Contract 2: masked equals sparse


@pytest.mark.parametrize(("unit", "kv"), FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_sparse(family, unit, kv):
    """In one pass, in chunks, in a padded batch, and in a padded batch in chunks."""
    model = routed(family, unit=unit, kv=kv)
    ids = tokens(2, 14, VOCABULARY)
    with forced(model, random_choice(2, 14, sites(model))):
        expected = logits(model, ids, "masked")
        assert_close(logits(model, ids, "sparse"), expected, "one pass")
        assert_close(logits(model, ids, "auto"), expected, "one pass, auto")
        for execution in ("masked", "sparse"):
            assert_close(chunked(model, ids, execution, [5, 6, 7, 12]), expected, f"{execution} in chunks")
    rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 13)]
    ids, mask = left_padded(rows)
    with forced(model, random_choice(2, 14, sites(model), seed=3)):
        expected = logits(model, ids, "masked", attention_mask=mask)
        results = {"sparse": logits(model, ids, "sparse", attention_mask=mask)}
        for execution in ("masked", "sparse"):
            results[f"{execution} in chunks"] = chunked(model, ids, execution, [2, 10, 11], mask)
        for name, result in results.items():
            for row, real in enumerate(mask.bool()):
                assert_close(result[row][real], expected[row][real], f"padded row {row}, {name}")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_masked_equals_sparse_for_any_decisions_and_chunks(data):
    family = data.draw(st.sampled_from(["llama", "mistral", "qwen2", "gemma2"]))
    unit, kv = data.draw(st.sampled_from(FORMS))
    model = routed(family, unit=unit, kv=kv)
    time = data.draw(st.integers(1, 15))
    count = 2 * time * sites(model)
    kind = data.draw(st.sampled_from(["any", "none", "all", "one"]))
    if kind == "any":
        bits = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    else:
        bits = [kind == "all"] * count
        if kind == "one":
            bits[data.draw(st.integers(0, count - 1))] = True
    choice = torch.tensor(bits).long().view(2, time, sites(model))
    cuts = sorted(data.draw(st.sets(st.integers(1, time), max_size=4)))
    padding = data.draw(st.integers(0, time - 1))
    ids = tokens(2, time, VOCABULARY)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    with forced(model, choice):
        expected = logits(model, ids, "masked", attention_mask=mask)
        for name, result in {
            "sparse": logits(model, ids, "sparse", attention_mask=mask),
            "sparse in chunks": chunked(model, ids, "sparse", cuts, mask),
            "masked in chunks": chunked(model, ids, "masked", cuts, mask),
        }.items():
            for row, real in enumerate(mask.bool()):
                assert_close(result[row][real], expected[row][real], f"{name}, row {row}")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("unit", UNITS)
def test_static_cache_equals_no_cache(family, unit):
    model = routed(family, unit=unit)
    rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (7, 15)]
    ids, mask = left_padded(rows)
    with forced(model, random_choice(2, 15, sites(model))):
        expected = logits(model, ids, "masked", attention_mask=mask)
        for execution in ("masked", "sparse"):
            cache = StaticCache(config=model.config, max_cache_len=20)
            pieces = []
            with torch.no_grad(), executed(model, execution):
                for start, stop in ((0, 9), (9, 10), (10, 11), (11, 14), (14, 15)):
                    out = model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
                    pieces.append(out.logits)
            result = torch.cat(pieces, dim=1)
            for row, real in enumerate(mask.bool()):
                assert_close(result[row][real], expected[row][real], f"static cache, {execution}, row {row}")


@pytest.mark.parametrize("who", ["token", *HELD])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_generation_with_a_static_cache(family, who):
    """transformers then makes the attention masks itself, in four dimensions."""
    model = routed(family, **WHO[who])
    ids, mask = left_padded([tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 9)])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    for execution in ("masked", "sparse", "auto"):
        with executed(model, execution):
            assert torch.equal(model.generate(ids, cache_implementation="static", **options), expected)


def test_blocks_planned_on_the_host_are_those_of_the_device(monkeypatch):
    """On another device than the CPU, blocks are planned from copies of the indices."""
    original = TokenIndex.of
    monkeypatch.setattr(TokenIndex, "of", lambda flat, on_host, time: original(flat, on_host.clone(), time))
    for unit, kv in FORMS:
        model = routed("mistral", unit=unit, kv=kv)
        ids, mask = left_padded([tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 13)])
        with forced(model, random_choice(2, 14, sites(model), seed=3)):
            expected = logits(model, ids, "masked", attention_mask=mask)
            result = logits(model, ids, "sparse", attention_mask=mask)
        for row, real in enumerate(mask.bool()):
            assert_close(result[row][real], expected[row][real], f"row {row}, {unit}, {kv}")


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_eager_attention_equals_sdpa(kv):
    ids = tokens(2, 12, VOCABULARY)
    results = []
    for implementation in ("sdpa", "eager"):
        model = routed("mistral", model={"attn_implementation": implementation}, kv=kv)
        with forced(model, random_choice(2, 12, sites(model))):
            results += [logits(model, ids, "masked"), logits(model, ids, "sparse")]
    for result in results[1:]:
        assert_close(result, results[0], "attention implementations")


@pytest.mark.parametrize(("unit", "kv"), FORMS)
@pytest.mark.parametrize("who", ["token", *HELD])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_documents_equal_separate_ones(family, who, unit, kv):
    model = routed(family, unit=unit, kv=kv, sink_tokens=1, **WHO[who])
    first, second = tokens(2, 9, VOCABULARY, 1), tokens(2, 11, VOCABULARY, 2)
    ids = torch.cat([first, second], dim=1)
    position_ids = torch.cat([torch.arange(9), torch.arange(11)]).expand(2, -1)
    for execution in ("masked", "sparse"):
        packed = logits(model, ids, execution, position_ids=position_ids)
        assert_close(packed[:, :9], logits(model, first, execution), f"first document, {execution}")
        assert_close(packed[:, 9:], logits(model, second, execution), f"second document, {execution}")


def test_packed_documents_have_prefixes_of_their_own():
    model = routed("llama", granularity="sequence", prefix_tokens=3)
    first, second = tokens(2, 9, VOCABULARY, 1), tokens(2, 11, VOCABULARY, 2)
    ids = torch.cat([first, second], dim=1)
    position_ids = torch.cat([torch.arange(9), torch.arange(11)]).expand(2, -1)
    packed = logits(model, ids, "sparse", position_ids=position_ids)
    assert_close(packed[:, :9], logits(model, first, "sparse"), "first document")
    assert_close(packed[:, 9:], logits(model, second, "sparse"), "second document")


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_padding_with_holes(kv):
    """A 2D mask may hide any token, not only those on the left."""
    model = routed("llama", kv=kv)
    ids = tokens(2, 14, VOCABULARY)
    mask = torch.ones_like(ids)
    mask[0, 3:6], mask[1, :2], mask[1, 12:] = 0, 0, 0
    with forced(model, random_choice(2, 14, sites(model))):
        expected = logits(model, ids, "masked", attention_mask=mask)
        result = logits(model, ids, "sparse", attention_mask=mask)
        parts = chunked(model, ids, "sparse", [7, 8], mask)
    for row, real in enumerate(mask.bool()):
        assert_close(result[row][real], expected[row][real], "one pass")
        assert_close(parts[row][real], expected[row][real], "in chunks")


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_masks_of_the_callers_own(kv):
    """A 4D mask is obeyed as it is, also where it is not causal."""
    model = routed("llama", kv=kv)
    ids = tokens(2, 10, VOCABULARY)
    mask = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.6
    mask = mask | torch.eye(10, dtype=torch.bool)
    if kv == "evict":
        mask = mask & torch.ones(10, 10, dtype=torch.bool).tril()
    with forced(model, random_choice(2, 10, sites(model))):
        expected = logits(model, ids, "masked", attention_mask=mask)
        assert_close(logits(model, ids, "sparse", attention_mask=mask), expected, "own mask")
        assert (expected - logits(model, ids, "masked")).abs().max() > 0.01


# Contracts 2, 4 and 5 with decisions of the routers' own


@pytest.mark.parametrize("kv", ["project", "evict"])
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("unit", ["block", "attention+mlp"])
class TestOwnDecisions:
    def model(self, who, unit, kv):
        model = routed("mistral", unit=unit, kv=kv, sink_tokens=2, **WHO[who])
        logits(model, tokens(2, 20, VOCABULARY), "masked")
        if who in HELD:
            held = last_decision(model).choice
            for other in ("threshold", "rate:0.2"):
                set_serve(model, other)
                logits(model, tokens(2, 20, VOCABULARY), "masked")
                assert not torch.equal(last_decision(model).choice, held), (
                    "how closely the rate is held must matter"
                )
            set_serve(model, WHO[who]["serve"])
        rates = last_decision(model).rate()
        assert ((rates > 0.2) & (rates < 1)).any(), "the router must decide both ways"
        return model

    def test_cached_equals_uncached(self, who, unit, kv):
        model = self.model(who, unit, kv)
        ids = tokens(2, 20, VOCABULARY)
        for cuts in ([7, 8, 12, 13], list(range(1, 20)), [19], [1, 2, 3, 4]):
            contracts.check_cached_equals_uncached(model, ids, cuts)

    def test_batched_left_padded_equals_single(self, who, unit, kv):
        rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (3, 11, 17)]
        contracts.check_batched_equals_single(self.model(who, unit, kv), rows, cuts=[5, 15, 16])

    def test_masked_equals_sparse(self, who, unit, kv):
        model = self.model(who, unit, kv)
        ids, mask = left_padded([tokens(1, n, VOCABULARY, seed=n)[0] for n in (9, 24)])
        expected = logits(model, ids, "masked", attention_mask=mask)
        result = logits(model, ids, "sparse", attention_mask=mask)
        parts = chunked(model, ids, "sparse", [10, 16, 17], mask)
        for row, real in enumerate(mask.bool()):
            assert_close(result[row][real], expected[row][real], f"row {row}")
            assert_close(parts[row][real], expected[row][real], f"row {row}, in chunks")

    def test_no_decision_or_logit_sees_the_future(self, who, unit, kv):
        model = self.model(who, unit, kv)
        ids = tokens(2, 20, VOCABULARY)
        with executed(model, "masked"):
            contracts.check_prefix_invariance(model, ids, 9, VOCABULARY)
            contracts.check_prefix_invariance(model, ids, 19, VOCABULARY)

    def test_inference_is_deterministic(self, who, unit, kv):
        contracts.check_deterministic(self.model(who, unit, kv), tokens(2, 20, VOCABULARY))

    def test_greedy_generation_in_a_padded_batch(self, who, unit, kv):
        model = self.model(who, unit, kv)
        contracts.check_generation(model, [tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 9)])

    def test_beams_reorder_everything(self, who, unit, kv):
        model = self.model(who, unit, kv)
        ids = tokens(2, 6, VOCABULARY)
        options = {
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": 5,
            "num_beams": 3,
            "pad_token_id": 0,
        }
        beams = model.generate(ids, do_sample=False, **options)
        assert torch.equal(beams, model.generate(ids, do_sample=False, use_cache=False, **options))

    def test_rates_do_not_change_with_padding(self, who, unit, kv):
        model = self.model(who, unit, kv)
        rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (6, 13)]
        ids, mask = left_padded(rows)
        logits(model, ids, "auto", attention_mask=mask)
        together = last_decision(model).counts()
        alone = []
        for row in rows:
            logits(model, row[None], "auto")
            alone.append(last_decision(model).counts())
        assert torch.equal(together, alone[0] + alone[1])


@pytest.mark.parametrize("granularity", ["batch", "sequence_mean"])
def test_historical_routers_see_the_future_and_say_so(granularity):
    model = routed("llama", granularity=granularity, sink_tokens=0)
    with torch.no_grad():
        get_router(model).all_routings()[0].router.layers[-1].weight.mul_(
            0.02
        )  # probabilities away from 0 and 1
    ids = tokens(2, 20, VOCABULARY)
    changed = ids.clone()
    changed[:, 15:] = tokens(2, 5, VOCABULARY, seed=9)
    logits(model, ids, "masked")
    before = last_decision(model)
    logits(model, changed, "masked")
    after = last_decision(model)
    assert not before.causal
    difference = (before.probabilities[:, :15] - after.probabilities[:, :15]).abs().max()
    assert difference > 1e-4, "an earlier decision moves with a later token"
    per_sequence = before.choice == before.choice[:, :1]
    assert per_sequence.all()
    if granularity == "batch":
        assert (before.choice == before.choice[:1]).all()
    # What was decided about the prompt holds while generating.
    with torch.no_grad(), collect_decisions(model) as decisions:
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, pad_token_id=0
        )
    assert all(torch.equal(one.choice[:, :1], decisions[0].choice[:, :1]) for one in decisions)
    assert_close(logits(model, ids, "sparse"), logits(model, ids, "masked"), granularity)


def test_sequence_router_lets_the_prefix_run_and_then_decides_once():
    model = routed("llama", granularity="sequence", prefix_tokens=4)
    logits(model, tokens(8, 12, VOCABULARY), "masked")
    choice = last_decision(model).choice
    assert (choice[:, :4] == 1).all()
    assert (choice[:, 4:] == choice[:, 4:5]).all()
    assert len({tuple(row) for row in choice[:, 4].tolist()}) > 1, "sequences are told apart"


@pytest.mark.parametrize("kv", ["project", "evict"])
@pytest.mark.parametrize("who", ["sequence", *HELD])
def test_what_a_router_remembers_goes_where_its_row_goes(who, kv):
    """Rows of the cache change places, as in beam search; a sequence router's before its prefix is complete."""
    model = routed("llama", kv=kv, sink_tokens=0, **{**WHO[who], "prefix_tokens": 12})
    ids = tokens(4, 24, VOCABULARY)
    order = torch.tensor([2, 0, 0, 3])
    moved = torch.cat([ids[order, :10], ids[:, 10:]], dim=1)
    expected = logits(model, moved, "masked")
    assert len({tuple(row) for row in last_decision(model).choice[:, 16].tolist()}) > 1
    with torch.no_grad():
        for change in ("reorder_cache", "batch_select_indices"):
            past = model(ids[:, :10], use_cache=True).past_key_values
            getattr(past, change)(order)
            assert_close(model(moved[:, 10:], past_key_values=past).logits, expected[:, 10:], change)
        past = model(ids[:2, :10], use_cache=True).past_key_values
        past.batch_repeat_interleave(2)
        twice = torch.cat([ids[:2, :10].repeat_interleave(2, 0), ids[:, 10:]], dim=1)
        result = model(twice[:, 10:], past_key_values=past).logits
        assert_close(result, logits(model, twice, "masked")[:, 10:], "batch_repeat_interleave")
        past.reset()
        assert_close(model(ids, past_key_values=past).logits, logits(model, ids, "masked"), "reset")


@pytest.mark.parametrize("kv", ["project", "evict"])
@pytest.mark.parametrize("who", ["sequence", *HELD])
def test_what_a_router_remembers_is_cropped_with_the_cache(who, kv):
    model = routed("llama", kv=kv, sink_tokens=0, **WHO[who])
    rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (19, 24)]
    ids, mask = left_padded(rows)
    draft = torch.cat([ids[:, :14], tokens(2, 10, VOCABULARY, seed=9)], dim=1)
    expected = logits(model, ids, "masked", attention_mask=mask)
    for execution in ("masked", "sparse"):
        with torch.no_grad(), executed(model, execution):
            past = None
            for text, start, stop, back in (
                (ids, 0, 14, 0),
                (draft, 14, 15, 0),
                (draft, 15, 22, -8),
                (ids, 14, 24, 0),
            ):
                out = model(
                    text[:, start:stop], attention_mask=mask[:, :stop], past_key_values=past, use_cache=True
                )
                past = out.past_key_values
                past.crop(back)
        assert_close(out.logits, expected[:, 14:], execution)


@pytest.mark.parametrize("who", ["token", *HELD])
def test_assisted_decoding_is_greedy_decoding(who):
    """transformers drafts from the prompt, verifies in one pass, and crops the cache."""
    model = routed("llama", **WHO[who])
    ids = tokens(1, 6, VOCABULARY).repeat(1, 4)
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
    }
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), expected)


@pytest.mark.parametrize("who", HELD)
def test_keys_still_wait_where_a_row_is_remembered(who):
    """What a router remembers lies in the cache's layers, which project keys of skipping tokens when they are read."""
    model = routed("llama", sink_tokens=0, layers=[2, 3, 4, 5], **WHO[who])
    get_router(model).set_rate(0.05)
    ids = tokens(2, 40, VOCABULARY)
    with torch.no_grad(), executed(model, "sparse"):
        past = model(ids[:, :30], use_cache=True).past_key_values
        for token in range(30, 40):
            past = model(ids[:, token : token + 1], past_key_values=past).past_key_values
    assert any(isinstance(past.layers[layer], DeferringLayer) for layer in (2, 3, 4, 5))
    assert isinstance(past.layers[2], DeferringLayer) and past.layers[2].row_state
    assert_close(
        chunked(model, ids, "sparse", list(range(30, 40))),
        logits(model, ids, "masked"),
        "with keys that wait",
    )


def test_greedy_text_is_the_same_masked_and_sparse():
    model = routed("llama")
    ids = tokens(3, 7, VOCABULARY)
    texts = []
    for execution in ("masked", "sparse", "auto"):
        with executed(model, execution), collect_decisions(model) as decisions:
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
            )
        texts.append(out)
        assert len(decisions) == 8
        assert [one.valid.shape[1] for one in decisions] == [7, *[1] * 7]
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])


def test_every_layer_may_be_skipped_by_its_own_router():
    model = routed("qwen3", granularity="per_layer", layers=list(range(LAYERS)))
    ids = tokens(2, 12, VOCABULARY)
    expected = logits(model, ids, "masked")
    assert_close(logits(model, ids, "sparse"), expected, "all layers routed")
    assert_close(chunked(model, ids, "sparse", [5, 6]), expected, "all layers routed, cached")
