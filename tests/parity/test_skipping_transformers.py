"""A routed model in transformers, PEFT and accelerate: everything that a causal LM can do."""

import copy
import os
import subprocess
import sys
import threading

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

from layerroute.errors import UserError
from layerroute.routing import RoutingConfig
from layerroute.skipping import (
    SkipConfig,
    add_router,
    collect_decisions,
    executed,
    forced,
    get_router,
    last_decision,
    remove_router,
    router_disabled,
    set_router_trainable,
)
from tests.parity.contracts import assert_close, tokens
from tests.parity.skipping_models import DEFAULTS, VOCABULARY, plain, random_choice, routed, sharpen

LORA = {
    "r": 4,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}


@torch.no_grad()
def logits(model, ids, execution="auto", **kwargs):
    with executed(model, execution):
        return model(ids, use_cache=False, **kwargs).logits


def awaken(model) -> None:
    """LoRA begins as a no-op; give it something to do."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)


@pytest.mark.parametrize("order", ["router first", "adapter first"])
def test_lora_on_top_in_either_order(order):
    ids = tokens(2, 12, VOCABULARY)
    torch.manual_seed(0)
    if order == "router first":
        model = peft.get_peft_model(routed("llama"), peft.LoraConfig(**LORA))
    else:
        model = peft.get_peft_model(plain("llama"), peft.LoraConfig(**LORA))
        assert add_router(model, SkipConfig(**DEFAULTS)) is model
        sharpen(model)
    awaken(model)
    model.eval()
    assert not any("layerroute" in name and "lora" in name for name, _ in model.named_parameters())
    with forced(model, random_choice(2, 12, 4)):
        expected = logits(model, ids, "masked")
        assert_close(logits(model, ids, "sparse"), expected, "sparse with LoRA")
        with model.disable_adapter():
            assert (logits(model, ids, "sparse") - expected).abs().max() > 0.01
    with router_disabled(model), model.disable_adapter():
        assert torch.equal(logits(model, ids), plain("llama")(ids).logits)
    # Merging the adapter must not take the router off.
    with forced(model, random_choice(2, 12, 4)):
        merged = model.merge_and_unload()
        assert get_router(merged) is not None
        with executed(merged, "sparse"), torch.no_grad():
            assert_close(merged(ids, use_cache=False).logits, expected, "merged")


def test_lora_and_router_train_together_while_the_base_stays():
    model = peft.get_peft_model(routed("llama"), peft.LoraConfig(**LORA))
    assert not any(p.requires_grad for p in get_router(model).parameters()), (
        "PEFT freezes what it does not know"
    )
    set_router_trainable(model)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = tokens(4, 12, VOCABULARY)
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        (loss + 0.1 * last_decision(model).mean_probabilities()[:, -1].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora" in name for name in changed)
    assert any("layerroute.routings" in name for name in changed)
    assert any("layerroute.skip_paths" in name for name in changed)
    assert all("lora" in name or "layerroute" in name for name in changed)


def test_adapters_of_a_routed_model_load_onto_the_plain_base(tmp_path):
    """The router leaves every name as it is."""
    model = peft.get_peft_model(routed("llama"), peft.LoraConfig(**LORA))
    awaken(model)
    model.save_pretrained(tmp_path)
    ids = tokens(2, 9, VOCABULARY)
    with router_disabled(model):
        expected = logits(model.eval(), ids)
    again = peft.PeftModel.from_pretrained(plain("llama"), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)


@pytest.mark.parametrize("estimator", ["gumbel_st", "selected"])
@pytest.mark.parametrize(
    "who",
    [{"granularity": "token"}, {"granularity": "per_layer", "history": 2, "skip_path": "non_linear"}],
    ids=["token", "per_layer"],
)
def test_gradient_checkpointing_changes_nothing(who, estimator):
    routing = RoutingConfig(router="mlp", estimator=estimator, budget="quantile", rate=0.6)
    model = routed("llama", **who, routing=routing)
    model.train()
    ids = tokens(2, 12, VOCABULARY)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        for routing_module in get_router(model).all_routings():
            routing_module.thresholds.value.zero_()
            routing_module.thresholds.updates.zero_()
        model.zero_grad()
        torch.manual_seed(3)
        with collect_decisions(model) as decisions:
            loss = model(ids, labels=ids).loss
            (loss + last_decision(model).mean_probabilities()[:, -1].mean()).backward()
        assert len(decisions) == 1, "recomputation must not decide again"
        assert all(int(r.thresholds.updates) == 1 for r in get_router(model).all_routings())
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert_close(results[1][name], gradient, name, tolerance=1e-5)


def test_pipeline_writes_text():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", unk_token="w0")
    model = routed("llama")
    writer = pipeline("text-generation", model=model, tokenizer=fast)
    with collect_decisions(model) as decisions:
        text = writer("w5 w7 w9", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert text.startswith("w5 w7 w9w") and text.count("w") == 9
    assert len(decisions) == 6


def test_hidden_states_and_attentions_are_all_there():
    model = routed("llama", model={"attn_implementation": "eager"})
    ids = tokens(2, 9, VOCABULARY)
    with torch.no_grad(), forced(model, random_choice(2, 9, 4)):
        with executed(model, "masked"):
            expected = model(ids, output_hidden_states=True)
        with executed(model, "sparse"):
            out = model(ids, output_hidden_states=True)
        assert len(out.hidden_states) == len(expected.hidden_states) == 8
        for layer, (a, b) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
            assert_close(a, b, f"hidden state {layer}")
        assert len(model(ids, output_attentions=True).attentions) == 7


def test_two_threads_keep_their_decisions_apart():
    model = routed("llama")
    texts = [tokens(1, n, VOCABULARY, seed=n) for n in (5, 30, 17, 11)]
    expected = [logits(model, text) for text in texts]
    wrong = []

    def work(index):
        for _ in range(20):
            if not torch.equal(logits(model, texts[index], "auto"), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_failed_call_leaves_nothing_behind():
    model = routed("llama")
    ids = tokens(2, 9, VOCABULARY)
    expected = logits(model, ids)
    handle = model.model.layers[5].register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("boom"))
    )
    with pytest.raises(RuntimeError, match="boom"):
        model(ids)
    handle.remove()
    assert torch.equal(logits(model, ids), expected)
    from layerroute.skipping.layer import CURRENT

    assert CURRENT.get() is None


def test_a_deep_copy_is_a_model_of_its_own():
    model = routed("llama")
    twin = copy.deepcopy(model)
    ids = tokens(2, 9, VOCABULARY)
    expected = logits(model, ids)
    assert torch.equal(logits(twin, ids), expected)
    assert get_router(twin) is not get_router(model)
    with torch.no_grad():
        for parameter in get_router(twin).parameters():
            parameter.zero_()
    assert torch.equal(logits(model, ids), expected)
    assert not torch.equal(logits(twin, ids), expected)
    remove_router(twin)
    assert torch.equal(twin(ids).logits, plain("llama")(ids).logits)
    assert torch.equal(logits(model, ids), expected)


COMPILED = """
import torch
from layerroute.skipping import executed, forced
from tests.parity.contracts import assert_close, tokens
from tests.parity.skipping_models import VOCABULARY, random_choice, routed

model = routed("llama")
compiled = torch.compile(model, backend="eager")
with torch.no_grad():
    for time in (9, 14):
        ids = tokens(2, time, VOCABULARY)
        expected = model(ids, use_cache=False).logits
        for execution in ("masked", "sparse", "auto"):
            with executed(model, execution):
                assert_close(compiled(ids, use_cache=False).logits, expected, execution)
    past = compiled(ids[:, :8], use_cache=True)
    rest = compiled(ids[:, 8:], past_key_values=past.past_key_values)
    assert_close(torch.cat([past.logits, rest.logits], dim=1), expected, "cached")
"""


@pytest.mark.walk
def test_compiled_with_graph_breaks():
    """In a process of its own: torch.compile cannot trace the run-time type checks of the tests."""
    environment = os.environ | {"LAYERROUTE_NO_TYPECHECK": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_device_hooks_of_accelerate_stay_on_the_layers():
    """A device map binds each layer's forward; the router must come under it, not beside it."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Counting.calls += 1
            return args, kwargs

    model = plain("llama")
    ids = tokens(2, 9, VOCABULARY)
    for layer in model.model.layers:
        add_hook_to_module(layer, Counting())
    add_router(model, SkipConfig(**DEFAULTS))
    sharpen(model)
    with forced(model, random_choice(2, 9, 4)):
        result = logits(model, ids, "sparse")
    assert Counting.calls == 7
    reference = routed("llama")
    with forced(reference, random_choice(2, 9, 4)):
        assert_close(result, logits(reference, ids, "masked"), "with device hooks")
    remove_router(model)
    assert torch.equal(model(ids).logits, plain("llama")(ids).logits)
    assert Counting.calls == 14


def test_half_precision():
    ids = tokens(2, 12, VOCABULARY)
    model = routed("llama").to(torch.bfloat16)
    with forced(model, random_choice(2, 12, 4)):
        masked = logits(model, ids, "masked")
        sparse = logits(model, ids, "sparse")
    assert masked.dtype == sparse.dtype == torch.bfloat16
    assert_close(sparse.float(), masked.float(), "bfloat16", tolerance=0.1)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt"])
def test_unknown_families_are_masked(kind, caplog):
    settings = {
        "gpt2": {"n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64},
        "gpt_neox": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "opt": {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
        },
    }[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    ids = tokens(2, 10, VOCABULARY)
    with torch.no_grad():
        expected = model(ids).logits
    for bad in ({"unit": "mlp"}, {"kv": "evict"}):
        with pytest.raises(UserError, match="not a family"):
            add_router(model, SkipConfig(layers=[2, 3], router_layer=2, **bad))
    with pytest.raises(UserError, match="execution: sparse"):
        add_router(model, SkipConfig(layers=[2, 3], router_layer=2, execution="sparse"))
    add_router(model, SkipConfig(layers=[2, 3, 4], router_layer=2))
    assert "masked execution only" in caplog.text
    with forced(model, 1):
        assert_close(logits(model, ids), expected, "all run")
    with forced(model, 0.5):
        uncached = logits(model, ids)
        assert (uncached - expected).abs().max() > 0.01
        with torch.no_grad():
            past = model(ids[:, :6], use_cache=True)
            rest = model(ids[:, 6:], past_key_values=past.past_key_values)
        assert_close(torch.cat([past.logits, rest.logits], dim=1), uncached, "cached")
    with router_disabled(model):
        assert torch.equal(logits(model, ids), expected)


def test_what_has_no_decoder_layers_is_refused():
    with pytest.raises(UserError, match="decoder layers"):
        add_router(torch.nn.Linear(3, 3), SkipConfig())


def test_one_router_a_model():
    model = routed("llama")
    with pytest.raises(UserError, match="already"):
        add_router(model, SkipConfig())
    remove_router(model)
    with pytest.raises(UserError, match="no router"):
        get_router(model)
    with pytest.raises(UserError, match="no router"):
        remove_router(model)


def test_asking_for_a_decision_before_there_is_one():
    model = routed("llama")
    with pytest.raises(UserError, match="not decided"):
        last_decision(model)
    with pytest.raises(UserError, match="Did you mean 'sparse'"), executed(model, "sparce"):
        pass
    with (
        pytest.raises(UserError, match="4 sites"),
        forced(model, torch.ones(1, 4, 3, dtype=torch.long)),
    ):
        pass


def test_a_frozen_router_decides_as_at_inference():
    model = routed("llama", routing=RoutingConfig(router="mlp", estimator="gumbel_st"))
    ids = tokens(2, 12, VOCABULARY)
    logits(model, ids, "masked")
    expected = last_decision(model).choice
    get_router(model).requires_grad_(False)
    model.train()
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        assert torch.equal(last_decision(model).choice, expected)
        assert not last_decision(model).gate.requires_grad
    assert all(routing.training for routing in get_router(model).all_routings())
    set_router_trainable(model)
    model(ids)
    assert last_decision(model).gate.requires_grad


@pytest.mark.parametrize("control", ["random", "periodic", "static"])
def test_controls_route_at_their_rate(control):
    model = routed("llama", routing=RoutingConfig(control=control, rate=0.5), sink_tokens=0)
    ids = tokens(4, 40, VOCABULARY)
    result = logits(model, ids, "sparse")
    assert_close(logits(model, ids, "masked"), result, control)
    assert abs(float(last_decision(model).mean_rate()) - 0.5) < 0.06
    with torch.no_grad(), collect_decisions(model) as decisions:
        past = model(ids[:, :30], use_cache=True)
        rest = model(ids[:, 30:], past_key_values=past.past_key_values)
    assert_close(torch.cat([past.logits, rest.logits], dim=1), result, f"{control} in a cache")
    assert torch.equal(torch.cat([one.choice for one in decisions], 1), last_choice(model, ids))


def last_choice(model, ids):
    logits(model, ids)
    return last_decision(model).choice


def test_multi_budget_by_rate():
    """Quantile budgets follow the rate that is set, batch by batch."""
    model = routed("llama", routing=RoutingConfig(router="mlp", budget="quantile", rate=0.8), sink_tokens=0)
    model.train()
    ids = tokens(4, 32, VOCABULARY)
    for rate in (0.8, 0.5, 0.3):
        get_router(model).set_rate(rate)
        model(ids)
        assert abs(float(last_decision(model).mean_rate()) - rate) < 0.02
