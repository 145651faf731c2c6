"""What sparse execution runs, and that its gradients are those of masked execution."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import StaticCache

from layerroute.errors import UserError
from layerroute.ops.flops import flop_counter
from layerroute.routing import RoutingConfig
from layerroute.skipping import (
    SkipProfitability,
    executed,
    forced,
    get_router,
    last_decision,
    router_disabled,
)
from layerroute.skipping.router import LayerRouter
from tests.parity.contracts import assert_close, cached_logits, left_padded, tokens
from tests.parity.far_device import Far, counted_waits
from tests.parity.skipping_models import FAMILIES, LINEAR, VOCABULARY, random_choice, routed


class Seen:
    """Numbers of tokens that each submodule of a layer was given in one call."""

    def __init__(self, model, layer: int):
        self.counts: dict[str, int] = {}
        self.handles = []
        for name, module in model.get_decoder().layers[layer].named_modules():
            if name:
                self.handles.append(module.register_forward_hook(self.hook(name)))

    def hook(self, name):
        def record(module, args, output):
            self.counts[name] = args[0].shape[:-1].numel() if args else 0

        return record

    def __enter__(self):
        return self.counts

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("kv", ["project", "evict"])
@pytest.mark.parametrize("family", FAMILIES)
def test_modules_see_exactly_the_tokens_that_run(family, kv):
    model = routed(family, kv=kv)
    ids = tokens(2, 14, VOCABULARY)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    total = int(mask.sum())
    choice = random_choice(2, 14, 4)
    choice[..., 1], choice[..., 2] = 0, 1
    with torch.no_grad(), executed(model, "sparse"), forced(model, choice):
        counts = {}
        for layer in (2, 3, 4, 6):
            with Seen(model, layer) as counts[layer]:
                model(ids, attention_mask=mask, use_cache=False)
        decision = last_decision(model)
    run = decision.counts()[:, 1].tolist()
    assert run[1] == 0 and run[2] == total and 0 < run[0] < total
    mixed = counts[2]
    for name in ("mlp", "mlp.down_proj", "self_attn.o_proj"):
        if name in mixed or "mlp.experts" not in mixed:
            assert mixed[name] == run[0], name
    keys = run[0] if kv == "evict" else ids.numel()
    fused = "self_attn.qkv_proj" in mixed
    assert mixed["self_attn.qkv_proj" if fused else "self_attn.k_proj"] == keys
    if not fused:
        assert mixed["self_attn.q_proj"] == run[0]
    assert counts[3] == {}, "nobody runs and nothing is cached: the layer is not entered"
    if kv == "project":
        assert counts[4]["mlp"] == ids.numel(), "everybody runs: the layer itself is called"


@pytest.mark.parametrize("unit", ["block", "attention", "mlp"])
def test_the_skip_path_sees_exactly_the_tokens_that_skip(unit):
    model = routed("llama", unit=unit)
    ids, seen = tokens(2, 14, VOCABULARY), []
    handle = (
        get_router(model)
        .skip_path(2, unit)
        .register_forward_hook(lambda module, given, out: seen.append(given[0].shape[:-1].numel()))
    )
    with torch.no_grad(), executed(model, "sparse"), forced(model, random_choice(2, 14, 4)):
        model(ids, use_cache=False)
    handle.remove()
    skipped = int(last_decision(model).counts()[0, 0])
    assert seen == [skipped] and 0 < skipped < ids.numel()


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_units_leave_the_other_part_alone(unit):
    model = routed("llama", unit=unit)
    ids = tokens(2, 9, VOCABULARY)
    with torch.no_grad(), executed(model, "sparse"), forced(model, 0.5), Seen(model, 3) as counts:
        model(ids, use_cache=False)
        run = int(last_decision(model).counts()[1, 1])
    assert 0 < run < ids.numel()
    assert counts["mlp"] == (run if unit == "mlp" else ids.numel())
    assert counts["self_attn.o_proj"] == (run if unit == "attention" else ids.numel())


def test_decoding_enters_no_layer_that_nobody_runs():
    model = routed("llama")
    ids = tokens(2, 9, VOCABULARY)
    with torch.no_grad(), executed(model, "auto"):
        for choice, expected in (([0, 0], set()), ([0, 1], {1}), ([1, 1], {2})):
            table = torch.ones(2, 9, 4, dtype=torch.long)
            table[:, 8] = torch.tensor(choice)[:, None]
            with forced(model, table):
                past = model(ids[:, :8], use_cache=True).past_key_values
                with Seen(model, 3) as counts:
                    model(ids[:, 8:], past_key_values=past)
                    if not expected:
                        assert counts == {}, "not even keys are projected before somebody reads them"
                    assert past.get_seq_length(3) == 9
                    assert past.layers[3].keys.shape == past.layers[3].values.shape == (2, 2, 9, 8)
            assert {counts[name] for name in ("mlp", "self_attn.o_proj") if name in counts} == expected
            assert counts["self_attn.k_proj"] == counts["self_attn.v_proj"] == 2


def test_keys_that_wait_are_those_of_the_layer():
    """Whenever they are read, and in copies, keys of skipping tokens are what masked execution wrote."""
    model = routed("llama")
    ids = tokens(2, 12, VOCABULARY)
    choice = torch.ones(2, 12, 4, dtype=torch.long)
    choice[:, 4:, 1], choice[:, 10, 1], choice[:, 5:9, 2] = 0, 1, 0
    caches = []
    with torch.no_grad(), forced(model, choice):
        for execution, look in (("masked", False), ("auto", False), ("auto", True)):
            with executed(model, execution):
                past = model(ids[:, :4], use_cache=True).past_key_values
                for time in range(4, 12):
                    model(ids[:, time : time + 1], past_key_values=past)
                    if look:
                        past = copy.deepcopy(past)
                        past.reorder_cache(torch.tensor([1, 0]))
                        past.reorder_cache(torch.tensor([1, 0]))
            caches.append(past)
    for past in caches[1:]:
        for layer in range(7):
            assert past.get_seq_length(layer) == 12
            assert_close(past.layers[layer].keys, caches[0].layers[layer].keys, f"keys of layer {layer}")
            assert_close(
                past.layers[layer].values, caches[0].layers[layer].values, f"values of layer {layer}"
            )


def test_keys_do_not_wait_for_ever():
    model = routed("llama")
    choice = torch.zeros(1, 600, 4, dtype=torch.long)
    with torch.no_grad(), forced(model, choice):
        past = model(tokens(1, 200, VOCABULARY), use_cache=True).past_key_values
        layer = past.layers[3]
        assert len(layer._waiting) == 1
        past.get_seq_length(3)
        model(tokens(1, 70, VOCABULARY), past_key_values=past)
        assert layer._waiting == [] and layer._keys.shape[2] == past.get_seq_length(3) == 270


def test_evicted_tokens_leave_no_keys():
    model = routed("llama", kv="evict")
    ids = tokens(1, 12, VOCABULARY)
    choice = random_choice(1, 12, 4)
    with torch.no_grad(), forced(model, choice):
        for execution in ("masked", "sparse"):
            with executed(model, execution):
                past = model(ids[:, :7], use_cache=True).past_key_values
                for time in range(7, 12):
                    model(ids[:, time : time + 1], past_key_values=past)
            kept = [past.layers[layer].keys.shape[2] for layer in (2, 3, 4, 6)]
            assert kept == choice.sum(dim=(0, 1)).tolist()
            assert past.get_seq_length() == 12
            assert past.layers[2].get_seq_length() == 12


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_a_cropped_cache_goes_on_as_if_nothing_had_been(kv):
    model = routed("llama", kv=kv)
    ids = tokens(2, 12, VOCABULARY)
    detour = torch.cat([ids[:, :8], tokens(2, 4, VOCABULARY, seed=5)], dim=1)
    with torch.no_grad(), forced(model, random_choice(2, 16, 4)):
        expected = cached_logits(model, ids, [8])[:, 8:]
        past = model(detour, use_cache=True).past_key_values
        past.crop(-4)
        assert_close(model(ids[:, 8:], past_key_values=past).logits, expected, "after a crop")


def test_executed_flops_fall_with_the_rate():
    model = routed("llama", skip_path="identity")
    ids = tokens(2, 32, VOCABULARY)
    counts = []
    for rate in (1.0, 0.75, 0.5, 0.25, 0.0):
        choice = torch.zeros(2, 32, 4, dtype=torch.long)
        choice[:, : round(32 * rate)] = 1
        with (
            torch.no_grad(),
            executed(model, "sparse"),
            forced(model, choice),
            flop_counter() as counter,
        ):
            model(ids, use_cache=False)
        counts.append(counter.get_total_flops())
    assert counts == sorted(counts, reverse=True)
    with torch.no_grad(), executed(model, "masked"), forced(model, 0), flop_counter() as counter:
        model(ids, use_cache=False)
    assert counter.get_total_flops() == counts[0], "masked execution computes everything"


def modes(model, ids, **kwargs) -> list[str]:
    """How each routed layer was executed in a call."""
    seen = []
    original = LayerRouter._routes

    def record(self, *args):
        routes = original(self, *args)
        seen.extend(route.mode for route in routes.values())
        return routes

    LayerRouter._routes = record
    try:
        model(ids, **kwargs)
    finally:
        LayerRouter._routes = original
    return seen


def test_auto_takes_sparse_where_enough_is_skipped():
    model = routed("llama", profitability=SkipProfitability(prefill=0.3, decode=0.6, train=0.5))
    ids = tokens(2, 10, VOCABULARY)
    choice = torch.ones(2, 10, 4, dtype=torch.long)
    choice[:, :2, 1], choice[:, :4, 2], choice[..., 3] = 0, 0, 0
    choice[1, 9, 1] = 0
    with torch.no_grad(), forced(model, choice):
        assert modes(model, ids, use_cache=False) == ["dense", "masked", "sparse", "skipped"]
        assert modes(model, ids, use_cache=False, output_attentions=True) == ["masked"] * 4
        with executed(model, "sparse"):
            assert modes(model, ids, use_cache=False) == ["dense", "sparse", "sparse", "skipped"]
        with executed(model, "masked"):
            assert modes(model, ids, use_cache=False) == ["masked"] * 4
        past = model(ids[:, :9], use_cache=True).past_key_values
        assert modes(model, ids[:, 9:], past_key_values=past) == ["dense", "masked", "dense", "skipped"]
    model.train()
    with forced(model, choice):
        # gumbel_st needs both paths for its gradient
        assert modes(model, ids, use_cache=False) == ["masked"] * 4
        get_router(model).requires_grad_(False)
        assert modes(model, ids, use_cache=False) == ["dense", "masked", "masked", "skipped"]


def gradients(model, ids, execution, **kwargs):
    model.zero_grad()
    torch.manual_seed(7)  # the same noise, so the same decisions
    real = kwargs.get("attention_mask", torch.ones_like(ids)).bool()
    # Only real tokens predict real tokens: transformers' loss would let the last padding predict the first token.
    labels = ids.masked_fill(~(real & real.roll(1, dims=1)), -100)
    with executed(model, execution):
        out = model(ids, labels=labels, use_cache=False, **kwargs)
    decision = last_decision(model)
    (out.loss + decision.mean_probabilities()[:, -1].mean()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.loss.detach(), decision.choice, found


@pytest.mark.parametrize(
    "who",
    [
        {"granularity": "token"},
        {"granularity": "per_layer"},
        {"granularity": "per_layer", "history": 2, "skip_path": "non_linear"},
        {"granularity": "sequence", "prefix_tokens": 3},
    ],
    ids=["token", "per_layer", "history", "sequence"],
)
@pytest.mark.parametrize("kv", ["project", "evict"])
@pytest.mark.parametrize("unit", ["block", "attention+mlp"])
def test_selected_has_the_same_gradients_masked_and_sparse(unit, kv, who):
    model = routed(
        "mistral",
        unit=unit,
        kv=kv,
        **who,
        routing=RoutingConfig(router="mlp", estimator="selected"),
    )
    model.train()
    with torch.no_grad():
        for routing in get_router(model).all_routings():
            routing.router.layers[-1].weight.mul_(0.05)
    ids = tokens(3, 15, VOCABULARY)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    loss, choice, masked = gradients(model, ids, "masked", attention_mask=mask)
    sparse_loss, sparse_choice, sparse = gradients(model, ids, "sparse", attention_mask=mask)
    assert torch.equal(choice, sparse_choice)
    assert 0.1 < choice.float().mean() < 0.95
    assert_close(sparse_loss, loss, "loss")
    assert any("routings" in name and grad.abs().max() > 0 for name, grad in masked.items())
    assert any("skip_paths" in name and grad.abs().max() > 0 for name, grad in masked.items())
    for name in masked.keys() | sparse.keys():
        a, b = (side.get(name, torch.zeros(())) for side in (masked, sparse))
        assert_close(b, a, name, tolerance=1e-3)


@pytest.mark.parametrize("estimator", ["gumbel_st", "sigmoid_st", "soft"])
def test_other_estimators_train_masked_and_say_so(estimator):
    model = routed("llama", routing=RoutingConfig(router="mlp", estimator=estimator))
    model.train()
    ids = tokens(2, 8, VOCABULARY)
    with executed(model, "sparse"), pytest.raises(UserError, match="needs both paths"):
        model(ids)
    _, _, found = gradients(model, ids, "auto")
    router = [name for name in found if "routings" in name]
    assert router and all(found[name].isfinite().all() for name in found)
    assert any(found[name].abs().max() > 0 for name in router)


@pytest.mark.parametrize("kv", ["project", "evict"])
def test_the_gate_follows_the_formula(kv):
    """d loss / d gate is what each path would add, for tokens that run and for tokens that skip."""
    model = routed(
        "llama",
        layers=[6],
        routing=RoutingConfig(router="linear", estimator="sigmoid_st"),
        sink_tokens=0,
        kv=kv,
    )
    model.train()
    ids = tokens(1, 8, VOCABULARY)
    layer = model.model.layers[6]

    def states(choice):
        """The layer's input and output where these tokens run."""
        seen = {}
        handle = layer.register_forward_hook(
            lambda module, args, output: seen.update(before=args[0], after=output)
        )
        with forced(model, choice.view(1, 8, 1)), executed(model, "masked"), torch.no_grad():
            model(ids, use_cache=False)
        handle.remove()
        return seen["before"][0], seen["after"][0]

    out = model(ids, use_cache=False)
    decision = last_decision(model)
    (gradient,) = torch.autograd.grad(out.logits.sum(), decision.gate)
    choice = decision.choice[0, :, 0]
    assert 0 < choice.sum() < 8
    before, after = states(choice)
    ran = after.clone()
    for time in (choice == 0).nonzero()[:, 0]:
        alone = choice.clone()
        alone[time] = 1
        ran[time] = states(alone)[1][time]
    skipped = before + get_router(model).skip_path(6, "block")(before)
    chosen = after.clone().requires_grad_()
    (upstream,) = torch.autograd.grad(model.lm_head(model.model.norm(chosen)).sum(), chosen)
    assert_close(gradient[0, :, 0, 1], (upstream * (ran - before)).sum(-1), "run gate")
    assert_close(gradient[0, :, 0, 0], (upstream * (skipped - before)).sum(-1), "skip gate")


def test_rows_that_decide_differently_are_exact_in_decode():
    model = routed("llama")
    rows = [tokens(1, n, VOCABULARY, seed=n)[0] for n in (3, 6, 8)]
    ids, mask = left_padded(rows)
    follow = tokens(3, 5, VOCABULARY, seed=50)
    choice = random_choice(3, 13, 4, seed=2)
    with torch.no_grad(), forced(model, choice):
        past = model(ids, attention_mask=mask, use_cache=True).past_key_values
        for time in range(5):
            mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
            out = model(follow[:, time : time + 1], attention_mask=mask, past_key_values=past)
    for row, text in enumerate(rows):
        with torch.no_grad(), forced(model, choice[row : row + 1]), executed(model, "masked"):
            alone = model(torch.cat([text, follow[row]])[None], use_cache=False).logits[0, -1]
        assert_close(out.logits[row, -1], alone, f"row {row}")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_family_batch_and_cache_gives_what_masked_execution_gives(data):
    """Rows of any length behind padding, in any chunks, with a dynamic and a static cache: one answer."""
    family = data.draw(st.sampled_from(list(FAMILIES)))
    unit = data.draw(st.sampled_from(["block", "attention", "mlp", "attention+mlp"]))
    static = data.draw(st.booleans())
    evicts = not static and unit != "mlp" and family not in LINEAR
    kv = data.draw(st.sampled_from(["project", "evict"])) if evicts else "project"
    model = routed(family, unit=unit, kv=kv)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    ids, mask = left_padded([tokens(1, n, VOCABULARY, seed=n)[0] for n in lengths])
    time = ids.shape[1]
    rate = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    choice = random_choice(len(lengths), time, len(get_router(model).sites), rate, seed=time)
    cuts = sorted({*data.draw(st.sets(st.integers(1, time), max_size=4)), time})
    chunks = list(zip([0, *cuts], cuts, strict=False))
    if (
        family in LINEAR
    ):  # transformers takes no token of a call with one for padding there, in plain models too
        assume(all(stop - start > 1 or mask[:, start].all() for start, stop in chunks))
    with torch.no_grad(), forced(model, choice):
        with executed(model, "masked"):
            expected = model(ids, attention_mask=mask, use_cache=False).logits
        with executed(model, data.draw(st.sampled_from(["sparse", "auto"]))):
            past = StaticCache(config=model.config, max_cache_len=time + 3) if static else None
            pieces = []
            for start, stop in chunks:
                out = model(
                    ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=past, use_cache=True
                )
                pieces.append(out.logits)
                past = out.past_key_values
    real = mask.bool()
    assert_close(torch.cat(pieces, dim=1)[real], expected[real], f"{family}, cut at {cuts}")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kv", ["project", "evict"])
def test_decoding_waits_for_the_device_once_a_token(kv, rows, padded):
    """Beyond what the plain model waits for itself, whatever rows decide, with padding too."""
    model = routed("llama", kv=kv)
    ids = tokens(rows, 12, VOCABULARY).as_subclass(Far)
    choice = random_choice(rows, 12, 4).as_subclass(Far)
    mask = torch.ones(rows, 12, dtype=torch.long)
    mask[0, : 3 * padded * (rows > 1)] = 0
    waits = {}
    for who in ("plain", "routed"):
        off = router_disabled(model) if who == "plain" else executed(model, "sparse")
        with torch.no_grad(), forced(model, choice), off, counted_waits() as seen:
            past, counts = None, []
            for start, stop in ((0, 8), *((time, time + 1) for time in range(8, 12))):
                before = len(seen)
                given_mask = mask[:, :stop].as_subclass(Far) if padded else None
                out = model(ids[:, start:stop], attention_mask=given_mask, past_key_values=past)
                past = out.past_key_values
                counts.append(len(seen) - before)
        waits[who] = counts
    assert [own - base for own, base in zip(waits["routed"], waits["plain"], strict=True)] == [1] * 5


@pytest.mark.parametrize("granularity", ["token", "per_layer"])
def test_masked_decoding_on_a_static_cache_never_waits_for_the_device(granularity):
    """So that a token can be captured as a graph; the cache counts its tokens on the device."""
    model = routed("llama", granularity=granularity)
    cache, ids = StaticCache(config=model.config, max_cache_len=12), tokens(2, 10, VOCABULARY)
    with torch.no_grad(), executed(model, "masked"):
        expected = model(ids, use_cache=False).logits
        model(ids[:, :9], past_key_values=cache)
        for layer in cache.layers:
            layer.cumulative_length = layer.cumulative_length.as_subclass(Far)
        with counted_waits() as waits:
            last, where = ids[:, 9:].as_subclass(Far), torch.full((1, 1), 9).as_subclass(Far)
            logits = model(last, past_key_values=cache, position_ids=where).logits
    assert waits == []
    assert_close(logits.as_subclass(torch.Tensor), expected[:, 9:], "static")


def test_a_decision_walks_through_no_modules(monkeypatch):
    """It is made at every layer and token; looking for its router each time cost a tenth of a token."""
    model, walks = routed("llama", granularity="per_layer"), []
    router, walk = get_router(model), torch.nn.Module.named_modules
    monkeypatch.setattr(torch.nn.Module, "named_modules", lambda *a, **k: walks.append(a[0]) or walk(*a, **k))
    with torch.no_grad():
        model(tokens(1, 1, VOCABULARY), use_cache=True)
    assert sum(module is router for module in walks) < len(router.routings)
