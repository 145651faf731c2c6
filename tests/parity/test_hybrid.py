"""Contracts 2 to 6 for the hybrid model, over its routing modes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.masking_utils import sliding_window_causal_mask_function

from layerroute.data.configuration import DataConfig
from layerroute.data.recall.configuration import FIRST_KEY, RecallConfig
from layerroute.data.recall.prepared import RecallData
from layerroute.errors import UserError
from layerroute.hybrid import HybridForCausalLM, bytes_read, forward_flops
from layerroute.hybrid.mixers import SoftmaxMixer
from layerroute.ops.flops import flop_counter
from layerroute.routing import RouteDecision, at_rate, executed, forced, routings_of, set_serve, table
from tests.parity import contracts
from tests.parity.hybrid_models import MODES, VOCABULARY, build
from tests.parity.skipping_models import plain


@pytest.fixture(params=MODES, ids=list(MODES))
def model(request) -> HybridForCausalLM:
    return build(**MODES[request.param])


def test_cached_equals_uncached(model):
    ids = contracts.tokens(2, 23, VOCABULARY)
    for cuts in ([7, 8, 12, 13], list(range(1, 23)), [22], [1, 2, 3, 4]):
        contracts.check_cached_equals_uncached(model, ids, cuts)


def test_batched_left_padded_equals_single(model):
    rows = [contracts.tokens(1, n, VOCABULARY, seed=n)[0] for n in (3, 11, 17)]
    contracts.check_batched_equals_single(model, rows, cuts=[5, 15, 16])


def test_no_decision_or_logit_sees_the_future(model):
    ids = contracts.tokens(2, 20, VOCABULARY)
    contracts.check_prefix_invariance(model, ids, 9, VOCABULARY)
    contracts.check_prefix_invariance(model, ids, 19, VOCABULARY)


def test_inference_is_deterministic(model):
    contracts.check_deterministic(model, contracts.tokens(2, 20, VOCABULARY))


def test_greedy_generation_in_a_padded_batch(model):
    contracts.check_generation(model, [contracts.tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 9)])


def test_beam_search_and_sampling_run_on_the_cache(model):
    ids = contracts.tokens(2, 6, VOCABULARY)
    mask = torch.ones_like(ids)
    beams = model.generate(
        ids, attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False, pad_token_id=0
    )
    uncached = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=5,
        num_beams=3,
        do_sample=False,
        pad_token_id=0,
        use_cache=False,
    )
    assert torch.equal(beams, uncached), "beams must reorder keys, states and own-context lengths"
    sampled = model.generate(
        ids, attention_mask=mask, max_new_tokens=5, do_sample=True, top_k=5, pad_token_id=0
    )
    assert sampled.shape == (2, 11)


def test_packed_documents_equal_separate_ones(model):
    first, second = contracts.tokens(2, 9, VOCABULARY, 1), contracts.tokens(2, 14, VOCABULARY, 2)
    ids = torch.cat([first, second], dim=1)
    documents = torch.cat([torch.zeros_like(first), torch.ones_like(second)], dim=1)
    config = model.config
    if config.granularity == "head" and config.context == "own_context":
        with pytest.raises(UserError, match="granularity"):
            model(ids, document_ids=documents)
        return
    with torch.no_grad():
        packed = model(ids, document_ids=documents).logits
        contracts.assert_close(packed[:, :9], model(first).logits, "first document")
        contracts.assert_close(packed[:, 9:], model(second).logits, "second document")


def test_a_rate_that_is_held_differs_from_the_thresholds_and_is_the_one_asked():
    for mode in ("held", "held_heads", "held_sequential"):
        model = build(**MODES[mode])
        ids = contracts.tokens(3, 128, VOCABULARY)
        with torch.no_grad():
            decision = model(ids).decision
            asked = model.config.routing_config.rate
            for row in range(3):
                served = (decision.choice[row] == 1).float().mean().item()
                assert served == pytest.approx(asked, abs=0.02), mode
            for other in ("threshold", "rate:0.2"):
                set_serve(model, other)
                assert not torch.equal(model(ids).decision.choice, decision.choice)


def test_rates_do_not_change_with_padding(model):
    rows = [contracts.tokens(1, n, VOCABULARY, seed=n)[0] for n in (6, 13)]
    ids, mask = contracts.left_padded(rows)
    with torch.no_grad():
        decision = model(ids, attention_mask=mask).decision
        if decision is None:
            return
        alone = [model(row[None]).decision.counts() for row in rows]
        assert torch.equal(decision.counts(), alone[0] + alone[1])


@pytest.mark.parametrize("path", ["gdn", "softmax"])
@pytest.mark.parametrize(
    "mode", ["parallel", "own_context", "head", "sequential", "block", "block_own_context"]
)
def test_degenerate_routing_equals_the_pure_model(mode, path):
    routed = build(**MODES[mode])
    pattern = [path if kind == "routed" else kind for kind in routed.config.layer_pattern]
    pure = build(layer_pattern=pattern)
    state = {}
    for key, value in routed.state_dict().items():
        name = key
        for layer in routed.config.routed_layers:
            here = f"model.layers.{layer}."
            if routed.config.routed_unit == "block":
                name = name.replace(f"{here}paths.{path}.", f"{here}block.")
            else:
                name = name.replace(f"{here}paths.{path}.", f"{here}block.mixer.")
                for shared in ("mixer_norm", "mlp_norm", "mlp"):
                    name = name.replace(f"{here}{shared}.", f"{here}block.{shared}.")
        if name in pure.state_dict():
            state[name] = value
    pure.load_state_dict(state)
    ids = contracts.tokens(2, 21, VOCABULARY)
    with torch.no_grad(), forced(routed, routings_of(routed)[0].paths.index(path)):
        contracts.assert_close(routed(ids).logits, pure(ids).logits, f"all {path}")
    with torch.no_grad(), forced(routed, 1 - routings_of(routed)[0].paths.index(path)):
        assert (routed(ids).logits - pure(ids).logits).abs().max() > 0.01, "the other path must differ"


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(), mode=st.sampled_from(["parallel", "own_context", "head_own_context", "block_own_context"])
)
def test_any_decisions_in_any_chunking(data, mode):
    model = build(**MODES[mode])
    sites = tuple(site for routing in routings_of(model) for site in routing.sites)
    time = data.draw(st.integers(1, 18))
    bits = data.draw(st.lists(st.booleans(), min_size=2 * time * len(sites), max_size=2 * time * len(sites)))
    cuts = sorted(data.draw(st.sets(st.integers(1, time), max_size=4)))
    choice = torch.tensor(bits).long().view(2, time, len(sites))
    with forced(model, table(choice, sites)):
        contracts.check_cached_equals_uncached(model, contracts.tokens(2, time, VOCABULARY), cuts)


def test_own_context_differs_from_full_context_and_hides_the_other_path():
    own, full = build(context="own_context"), build()
    full.load_state_dict(own.state_dict())
    ids = contracts.tokens(1, 12, VOCABULARY)
    choice = torch.zeros(1, 12, 2, dtype=torch.long)
    choice[:, [3, 7, 11]] = 1
    with torch.no_grad():
        for model in (own, full):
            with forced(model, table(choice, routings_of(own)[0].sites)):
                logits = model(ids).logits
                own_logits = logits if model is own else own_logits
        assert (logits - own_logits).abs().max() > 0.01


def test_own_context_cache_holds_only_its_own_keys():
    model = build(context="own_context")
    ids = contracts.tokens(1, 40, VOCABULARY)
    with torch.no_grad(), forced(model, at_rate(0.25)):
        out = model(ids, use_cache=True)
        rates = out.decision.rate()
    for index, layer in enumerate(model.config.routed_layers):
        assert out.past_key_values.layers[layer].keys.shape[2] == round(40 * rates[index].item())


@pytest.mark.parametrize(
    "mode", ["parallel", "head", "block", "sequential", "own_context", "mlp_threshold", "window"]
)
@pytest.mark.parametrize("time", [64, 200])
def test_executed_flops_agree_with_the_analytic_number(mode, time):
    model = build(hidden_size=128, num_attention_heads=4, **MODES[mode])
    with torch.no_grad(), executed(model, "masked"), flop_counter() as counter:
        model(contracts.tokens(2, time, VOCABULARY), use_cache=False)
    expected = forward_flops(model.config, time).forward_per_token * 2 * time
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("window", [1, 7, 64, 500])
@pytest.mark.parametrize("time", [63, 200])
def test_a_window_gives_what_a_mask_gives(window, time, monkeypatch):
    """Outputs and gradients of blocks against transformers' own mask over all keys."""
    model = build(layer_pattern=["window", "gdn", "window"], window=window, num_key_value_heads=1)
    ids = contracts.tokens(2, time, VOCABULARY)
    sees = sliding_window_causal_mask_function(window)
    index = torch.arange(time)
    mask = sees(0, 0, index[:, None], index[None, :])

    def masked(query, key, value, context, window):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, enable_gqa=True
        )
        return output.transpose(1, 2)

    results = []
    for way in (SoftmaxMixer._see_window, masked):
        monkeypatch.setattr(SoftmaxMixer, "_see_window", staticmethod(way))
        model.zero_grad()
        out = model(ids, labels=ids, use_cache=False)
        out.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append({"logits": out.logits.detach(), **gradients})
    for name, found in results[0].items():
        contracts.assert_close(found, results[1][name], name)


def test_a_window_changes_what_is_seen_and_what_is_computed():
    wide, narrow = (build(layer_pattern=["gdn", "window"], window=window) for window in (600, 8))
    narrow.load_state_dict(wide.state_dict())
    full = build(layer_pattern=["gdn", "softmax"])
    full.load_state_dict(wide.state_dict())
    ids = contracts.tokens(1, 512, VOCABULARY)
    flops = []
    for model in (wide, narrow):
        with torch.no_grad(), flop_counter() as counter:
            model(ids, use_cache=False)
        flops.append(counter.get_total_flops())
    assert flops[1] < 0.8 * flops[0]
    with torch.no_grad():
        whole = full(ids).logits
        contracts.assert_close(wide(ids).logits, whole, "a window that is never full")
        contracts.assert_close(narrow(ids).logits[:, :8], whole[:, :8], "before the window is full")
        assert (narrow(ids).logits[:, 8:] - whole[:, 8:]).abs().max() > 0.01


@pytest.mark.parametrize(
    "settings",
    [{"layer_pattern": ["gdn", "window"]}, {"window": 4}, {"layer_pattern": ["window"], "window": 0}],
)
def test_windows_and_their_layers_go_together(settings):
    with pytest.raises(UserError, match=r"model\.window is .*1 or more"):
        build(**settings)


@pytest.mark.parametrize("writes", [1, 3])
def test_the_oracle_routes_what_the_labels_of_a_recall_task_count(writes):
    recall = RecallConfig(pairs=5, keys=8, values=9, noise=0.5, writes=writes)
    data = RecallData(DataConfig(source="recall", recall=recall, sequence_length=96))
    tokens = [FIRST_KEY, FIRST_KEY + recall.keys]
    routing = {"control": "oracle", "control_tokens": tokens, "control_after": writes}
    model = build(vocab_size=data.vocabulary_size, routing=routing)
    ids, answers = (torch.from_numpy(part) for part in data.validation(4))
    with torch.no_grad():
        choice = model(ids).decision.choice
    assert torch.equal(choice[:, :-1, 0] == 1, answers[:, 1:])
    assert torch.equal(choice[..., 0], choice[..., 1])


def test_the_oracle_is_told_or_refused():
    with pytest.raises(UserError, match=r"control_tokens goes with routing\.control: oracle"):
        build(routing={"control": "oracle"})
    model = build(**MODES["oracle"])
    with pytest.raises(UserError, match="oracle needs token ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32))


def held_bytes(cache, layer, kind):
    """What the cache holds of one layer: K and V, and state with taps."""
    held = cache.layers[layer]
    keys = 0
    if kind != "gdn" and held.is_initialized:
        keys = held.keys.nbytes + held.values.nbytes
    state = 0
    if kind in ("gdn", "routed"):
        state = held.recurrent_states[0].nbytes + held.conv_states[0].nbytes
    return keys, state


@pytest.mark.parametrize(
    "mode",
    ["parallel", "own_context", "head", "sequential", "grouped_queries", "window", "all_gdn", "oracle"],
)
def test_bytes_read_are_those_that_the_cache_holds_for_the_tokens_that_read(mode):
    """Token by token: a softmax token reads all keys of its layer (or its window), a GDN token the state."""
    model, time = build(**MODES[mode]), 12
    config = model.config
    ids = contracts.tokens(1, time, VOCABULARY)
    heads, own = config.num_key_value_heads, config.context == "own_context"
    cache, read, decisions = DynamicCache(config=config), [0.0, 0.0], []
    for place in range(time):
        with torch.no_grad():
            decision = model(ids[:, place : place + 1], past_key_values=cache).decision
        decisions.append(decision)
        for layer, kind in enumerate(config.layer_pattern):
            keys, state = held_bytes(cache, layer, kind)
            share = 1.0
            if kind == "routed":
                columns = [decision.sites.index(site) for site in config.sites_of(layer)]
                share = decision.expensive[0, 0, columns].float().mean().item()
            if kind == "window":
                share = min(1.0, config.window / (place + 1))
            read[0] += share * keys
            read[1] += state if not (own and kind == "routed") else (1 - share) * state
    found = bytes_read(
        config, time, None if decisions[0] is None else RouteDecision.one_after_the_other(decisions)
    )
    assert config.granularity != "head" or heads == config.num_attention_heads
    assert found.keys_values == pytest.approx(read[0] / time)
    assert found.state == pytest.approx(read[1] / time)


@pytest.mark.parametrize("context", ["full_context", "own_context"])
def test_bytes_at_a_rate_are_those_of_decisions_that_are_spread_evenly(context):
    model = build(context=context, routing={"control": "periodic", "rate": 0.25})
    with torch.no_grad():
        decision = model(contracts.tokens(2, 400, VOCABULARY)).decision
    exact, evenly = bytes_read(model.config, 400, decision), bytes_read(model.config, 400, rate=0.25)
    assert evenly.keys_values == pytest.approx(exact.keys_values, rel=0.02)
    assert evenly.state == pytest.approx(exact.state)
    late = decision.choice.sort(dim=1).values
    later = bytes_read(model.config, 400, replace(decision, choice=late))
    assert (later.keys_values > 1.2 * exact.keys_values) == (context == "full_context")
    with pytest.raises(ValueError, match="on a decision, or on a rate"):
        bytes_read(model.config, 400)


@pytest.mark.parametrize("estimator", ["gumbel_st", "sigmoid_st", "selected", "soft"])
@pytest.mark.parametrize("mode", ["parallel", "own_context", "head_own_context", "sequential", "block"])
def test_every_parameter_learns(mode, estimator):
    model = build(**MODES[mode] | {"routing": {"estimator": estimator}}).train()
    ids = contracts.tokens(2, 30, VOCABULARY)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("mode", ["parallel", "sequential", "own_context"])
def test_gradient_checkpointing_changes_no_gradient(mode):
    gradients = []
    for checkpointing in (False, True):
        model = build(**MODES[mode] | {"routing": {"budget": "quantile", "rate": 0.3}}).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = contracts.tokens(2, 30, VOCABULARY)
        torch.manual_seed(1)
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        gradients[-1]["threshold"] = routings_of(model)[0].thresholds.value
    for name, gradient in gradients[0].items():
        contracts.assert_close(gradients[1][name], gradient, name, tolerance=1e-5)


@pytest.mark.parametrize("mode", ["parallel", "own_context", "head_own_context"])
def test_batch_rows_that_decide_differently_do_not_touch_each_other(mode):
    model = build(**MODES[mode])
    sites = tuple(site for routing in routings_of(model) for site in routing.sites)
    ids = contracts.tokens(2, 15, VOCABULARY)
    choice = torch.stack([torch.zeros(15, len(sites)), torch.ones(15, len(sites))]).long()
    with torch.no_grad():
        with forced(model, table(choice, sites)):
            both = model(ids).logits
        for row in (0, 1):
            with forced(model, table(choice[row : row + 1], sites)):
                contracts.assert_close(both[row], model(ids[row : row + 1]).logits[0], f"row {row}")


def test_padding_is_never_counted():
    model = build(routing={"control": "periodic", "rate": 0.5})
    rows = [contracts.tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 40)]
    ids, mask = contracts.left_padded(rows)
    with torch.no_grad():
        decision = model(ids, attention_mask=mask).decision
    assert decision.counts().sum(-1).tolist() == [44, 44]


# Ways to decode that take tokens back, or keep them elsewhere


@pytest.mark.parametrize("new", [1, 9])
def test_drafting_for_another_model_leaves_its_text_as_it_is(model, new):
    ids = contracts.tokens(1, 9, VOCABULARY)
    options = {"max_new_tokens": new + 1, "do_sample": False, "pad_token_id": 0}
    decides = plain("llama", eos_token_id=None)
    drafted = decides.generate(ids, **options, assistant_model=model)
    assert torch.equal(drafted, decides.generate(ids, **options))


def test_tokens_that_are_taken_back_leave_no_trace(model):
    """As assisted decoding takes them back: rejected ones, and one more that is given again."""
    ids = contracts.tokens(1, 20, VOCABULARY)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with torch.no_grad():
        expected = model(ids, use_cache=False)
        model(ids[:, :9], past_key_values=cache)
        cache.crop(-1)
        model(ids[:, 8:10], past_key_values=cache)
        for seed in (50, 51, 52):
            model(contracts.tokens(1, 1, VOCABULARY, seed=seed), past_key_values=cache)
        cache.crop(-4)
        found = model(ids[:, 9:11], past_key_values=cache)
        cache.crop(0)
        last = model(ids[:, 11:], past_key_values=cache, output_hidden_states=True)
    contracts.assert_close(found.logits, expected.logits[:, 9:11], "after taking back")
    contracts.assert_close(last.logits, expected.logits[:, 11:], "and on")
    assert last.hidden_states[0].shape[1] == 9
    if expected.decision is not None:
        assert torch.equal(last.decision.choice, expected.decision.choice[:, 11:])


def test_a_static_cache_gives_the_same_text(model):
    ids, mask = contracts.left_padded([contracts.tokens(1, n, VOCABULARY, seed=n)[0] for n in (4, 9)])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options, use_cache=False)
    assert torch.equal(model.generate(ids, **options, cache_implementation="static"), expected)
    assert torch.equal(model.generate(ids, **options), expected)
    masked = model.generate(ids, **options, cache_implementation="static", num_beams=2)
    assert torch.equal(masked, model.generate(ids, **options, use_cache=False, num_beams=2))


def test_continuous_batching_is_refused_by_name():
    with pytest.raises(UserError, match="generate_batch"):
        build().generate_batch([[3, 4, 5]], max_new_tokens=3)
    with pytest.raises(UserError, match="paged"):
        build().generate(contracts.tokens(1, 4, VOCABULARY), cache_implementation="paged")
