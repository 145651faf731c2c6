"""Sparse execution of the hybrid model: the masked one's answers, with only the chosen paths computed."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerroute.errors import UserError
from layerroute.hybrid import HybridConfig, HybridForCausalLM, forward_flops, sparse_flops_per_token
from layerroute.hybrid.mixers import GatedDeltaMixer, SoftmaxMixer
from layerroute.ops.flops import flop_counter
from layerroute.routing import executed, forced, table
from tests.parity import contracts
from tests.parity.hybrid_models import VOCABULARY, build

MODES = {
    "full_context": {},
    "own_context": {"context": "own_context"},
    "block": {"routed_unit": "block"},
    "block_own_context": {"routed_unit": "block", "context": "own_context"},
    "head": {"granularity": "head"},
    "head_grouped": {"granularity": "head", "num_key_value_heads": 1},
    "sequential": {"router_mode": "sequential", "layer_pattern": ["routed", "softmax", "routed"]},
    "normalized": {"normalize_paths": True},
    "grouped_own": {"num_key_value_heads": 1, "context": "own_context"},
    "no_rope": {"use_rope": False, "gdn_expand_v": 2},
}


def draw(model: HybridForCausalLM, rows: int, time: int, kind: str, seed: int) -> Tensor:
    """(rows, time, sites) choices: all one path, one token on the other, or random at a rate."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, time, len(model.config.sites))
    if kind in ("gdn", "softmax"):
        return torch.full(shape, int(kind == "softmax"))
    if kind == "one":
        choice = torch.zeros(shape, dtype=torch.long)
        choice[seed % rows, seed % time] = 1
        return choice
    if kind == "row":  # rows that decide differently
        return (torch.arange(rows)[:, None, None] % 2).expand(shape).contiguous()
    return (torch.rand(shape, generator=generator) < float(kind)).long()


def both(model: HybridForCausalLM, choice: Tensor, call) -> tuple[Tensor, Tensor]:
    results = []
    for execution in ("masked", "sparse"):
        with (
            torch.no_grad(),
            executed(model, execution),
            forced(model, table(choice, tuple(model.config.sites))),
        ):
            results.append(call())
    return results[0], results[1]


KINDS = ("gdn", "softmax", "one", "row", "0.1", "0.5", "0.9")


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=5, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_sparse_equals_masked_padded_and_chunked(mode, kind, lengths, seed, data):
    model = build(**MODES[mode])
    rows = [contracts.tokens(1, n, VOCABULARY, seed=seed + n)[0] for n in lengths]
    ids, mask = contracts.left_padded(rows)
    time = ids.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, time - 1)), max_size=3)))
    choice = draw(model, len(rows), time, kind, seed)
    calls = {
        "whole": lambda: model(ids, attention_mask=mask, use_cache=False).logits,
        "chunked": lambda: contracts.cached_logits(model, ids, cuts, mask),
        "token by token": lambda: contracts.cached_logits(model, ids, list(range(1, time)), mask),
    }
    for what, call in calls.items():
        masked, sparse = both(model, choice, call)
        contracts.assert_close(sparse[mask.bool()], masked[mask.bool()], f"{what}, cut at {cuts}")


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "sequential"])
@pytest.mark.parametrize("kind", ["gdn", "softmax", "0.4"])
def test_sparse_equals_masked_in_packed_documents(mode, kind):
    model = build(**MODES[mode])
    ids = contracts.tokens(2, 21, VOCABULARY)
    documents = torch.tensor([[0] * 6 + [1] * 1 + [2] * 14, [0] * 20 + [1]])
    choice = draw(model, 2, 21, kind, 3)
    masked, sparse = both(model, choice, lambda: model(ids, document_ids=documents, use_cache=False).logits)
    contracts.assert_close(sparse, masked, "packed documents")


@pytest.mark.parametrize("mode", ["full_context", "own_context", "block", "head", "normalized"])
def test_selected_trains_sparsely_with_the_same_gradients(mode):
    model = build(**MODES[mode], routing={"estimator": "selected"}).train()
    ids = contracts.tokens(2, 17, VOCABULARY)
    choice = draw(model, 2, 17, "0.4", 5)
    gradients = []
    for execution in ("masked", "sparse"):
        model.zero_grad()
        with executed(model, execution), forced(model, table(choice, tuple(model.config.sites))):
            model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    assert any(".routing." in name and grad.abs().max() > 0 for name, grad in gradients[0].items())
    for name, expected in gradients[0].items():
        contracts.assert_close(gradients[1][name], expected, f"gradient of {name}")


def test_checkpointed_training_is_sparse_too():
    model = build(routing={"estimator": "selected"}).train()
    ids = contracts.tokens(1, 12, VOCABULARY)
    choice = draw(model, 1, 12, "0.5", 1)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with executed(model, "sparse"), forced(model, table(choice, tuple(model.config.sites))):
            model(ids, labels=ids).loss.backward()
        results.append(model.model.layers[1].paths["softmax"].q_proj.weight.grad.clone())
    contracts.assert_close(results[1], results[0], "gradient with checkpointing")


def test_estimators_that_need_both_paths_are_masked_or_refused():
    model = build(routing={"estimator": "gumbel_st"}).train()
    ids = contracts.tokens(1, 8, VOCABULARY)
    read = count_reads(model)
    model(ids, labels=ids).loss.backward()
    assert read == []
    with (
        executed(model, "sparse"),
        pytest.raises(UserError, match="only selected and reinforce train sparsely"),
    ):
        model(ids, labels=ids)
    with pytest.raises(UserError, match="each head has tokens of its own"):
        HybridConfig(granularity="head", context="own_context", execution="sparse")
    with pytest.raises(UserError, match="Did you mean 'sparse'"):
        HybridConfig(execution="spares")
    with pytest.raises(UserError, match="Did you mean 'prefill'"):
        HybridConfig(profitability={"prefil": 0.5})


def count_reads(model: HybridForCausalLM) -> list[tuple[str, int]]:
    """Path and number of tokens of every sparse read, as they happen."""
    seen: list[tuple[str, int]] = []
    for module in model.modules():
        if isinstance(module, SoftmaxMixer | GatedDeltaMixer):
            module.read = partial(_spy, seen, type(module).__name__, module.read)
    return seen


def _spy(seen, name, original, hidden, context, index, **options):
    seen.append((name, index.flat.shape[0]))
    return original(hidden, context, index, **options)


def test_auto_is_sparse_at_inference_and_follows_the_threshold():
    model = build()
    ids = contracts.tokens(2, 20, VOCABULARY)
    seen = count_reads(model)
    with torch.no_grad(), forced(model, table(draw(model, 2, 20, "0.25", 0), tuple(model.config.sites))):
        model(ids, use_cache=False)
        assert [name for name, _ in seen] == ["GatedDeltaMixer", "SoftmaxMixer"] * 2
        assert all(sum(n for _, n in seen[i : i + 2]) == 40 for i in (0, 2))
        seen.clear()
        model.config.profitability = {"prefill": 1.0}
        model(ids, use_cache=False)
        assert seen == []


@pytest.mark.parametrize("mode", ["full_context", "own_context", "block", "block_own_context", "grouped_own"])
def test_executed_flops_are_the_analytic_ones_and_fall_with_the_rate(mode):
    model = build(**{**MODES[mode], "hidden_size": 64, "num_attention_heads": 4})
    ids = contracts.tokens(1, 640, VOCABULARY)
    counted = []
    for rate in (1.0, 0.9, 0.5, 0.25, 0.05, 0.0):
        choice = (torch.arange(640) % 20 < 20 * rate).long()[None, :, None].expand(1, 640, 2)
        chooser = table(choice, tuple(model.config.sites))
        with torch.no_grad(), executed(model, "sparse"), forced(model, chooser), flop_counter() as counter:
            model(ids, use_cache=False)
        counted.append(counter.get_total_flops() / 640)
        assert counted[-1] == pytest.approx(sparse_flops_per_token(model.config, 640, rate), rel=0.02), rate
    masked = forward_flops(model.config, 640).forward_per_token
    assert max(counted) < masked
    if "own" not in mode:  # there what attention gives up, GDN takes on
        assert counted[1:] == sorted(counted[1:], reverse=True)


@pytest.mark.parametrize("path", ["gdn", "softmax"])
def test_a_path_that_nobody_takes_is_not_computed(path):
    model = build()
    ids = contracts.tokens(1, 10, VOCABULARY)
    called: list[str] = []
    for layer in model.config.routed_layers:
        for name, mixer in model.model.layers[layer].paths.items():
            for part in ("k_proj", "q_proj", "o_proj"):
                getattr(mixer, part).register_forward_hook(
                    lambda *_, what=f"{name}.{part}": called.append(what)
                )
    with torch.no_grad(), forced(model, ("gdn", "softmax").index(path)):
        model(ids, use_cache=False)
        assert {what.split(".")[0] for what in called} == {path}
        called.clear()
        model(ids, use_cache=True)
    other = "softmax" if path == "gdn" else "gdn"
    assert f"{other}.k_proj" in called, "a cache needs the keys and the state of all tokens"
    assert f"{other}.o_proj" not in called
