import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from layerroute.errors import UserError
from layerroute.hybrid import (
    HybridConfig,
    HybridForCausalLM,
    forward_flops,
    parameters_by_part,
    sparse_flops_per_token,
)
from layerroute.hybrid.compaction import Compaction
from layerroute.routing import routings_of
from layerroute.training.configuration import ObjectiveConfig
from layerroute.training.objective import HybridLoss

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "vocab_size": 61}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_attention_heads": 5}, "do not divide hidden_size 32"),
        ({"num_attention_heads": 0}, "num_attention_heads: 0 must be at least 1"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be a positive number"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must be a positive number"),
        ({"layer_pattern": ["routed", "softmax"]}, "router_mode: sequential"),
        ({"layer_pattern": ["gdn", "softmaxx"]}, "Did you mean 'softmax'"),
        ({"layer_pattern": []}, "layer_pattern is empty"),
        ({"context": "own"}, "own_context"),
        ({"granularity": "head", "routed_unit": "block"}, "routed_unit: mixer"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"initializer_range": -1.0}, "initializer_range must not be negative"),
        ({"gdn_expand_v": 0.0}, "gdn_expand_v must be a positive number"),
        ({"gdn_expand_v": -1.0}, "gdn_expand_v must be a positive number"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a positive number"),
        ({"rope_parameters": {"rope_type": "lineal"}}, "Did you mean 'linear'?"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"rope_parameters": {"rope_theta": "high"}}, "rope_theta is high"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: .*factor"),
        ({"routing": {"router": "mlp", "widths": [-3]}}, "1 or more each"),
        ({"routing": {"widths": [3]}}, "of an mlp router's hidden layers"),
        ({"routing": {"estimater": "soft"}}, "Did you mean 'estimator'"),
        ({"router_layer": 2}, "must lie before the first routed layer"),
        ({"router_layer": 0, "router_mode": "sequential"}, "no effect"),
        ({"gdn_expand_v": 1.3}, "whole number"),
    ],
)
def test_impossible_configurations_say_what_would_fit(bad, message):
    with pytest.raises(UserError, match=message):
        HybridConfig(**SMALL | bad)


def test_an_odd_head_fits_without_rotary_embedding():
    odd = {**SMALL, "head_dim": 7}
    with pytest.raises(UserError, match="use_rope: false"):
        HybridConfig(**odd)
    model = HybridForCausalLM(HybridConfig(**odd, use_rope=False)).eval()
    assert model(torch.randint(1, 61, (1, 9))).logits.isfinite().all()


def test_round_trip_through_auto_classes(tmp_path):
    torch.manual_seed(0)
    config = HybridConfig(**SMALL, routing={"budget": "quantile", "rate": 0.3}, tie_word_embeddings=True)
    model = HybridForCausalLM(config)
    ids = torch.randint(1, 61, (2, 12))
    model.train()(ids, labels=ids)  # moves the thresholds
    model.eval().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is HybridForCausalLM
    assert AutoConfig.from_pretrained(tmp_path).layer_pattern == config.layer_pattern
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for name, value in model.named_buffers():
        assert torch.equal(dict(loaded.named_buffers())[name], value), name
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert routings_of(loaded)[0].thresholds.value.abs().sum() > 0


def test_a_checkpoint_from_before_spreads_loads_without_a_word(tmp_path):
    model = HybridForCausalLM(HybridConfig(**SMALL, serve="rate")).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert any(name.endswith("spread") for name in weights)
    old = {name: value for name, value in weights.items() if not name.endswith("spread")}
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = HybridForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and loaded.config.serve == "rate"
    assert (routings_of(loaded)[0].thresholds.spread == 1).all()
    ids = torch.randint(1, 61, (2, 40))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_the_start_of_the_router_survives_initialisation():
    model = HybridForCausalLM(HybridConfig(**SMALL, routing={"initial_bias": 2.0, "zero_init": True}))
    last = routings_of(model)[0].router.layers[-1]
    assert last.bias.tolist() == [2.0, 2.0] and last.weight.abs().sum().item() == 0
    assert routings_of(model)[0].rate.tolist() == [0.5, 0.5]


def test_parameters_by_part_add_up_and_a_gdn_mixer_is_near_an_attention_mixer():
    config = HybridConfig(vocab_size=50257)
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert set(parts) == {
        "embedding",
        "output",
        "mlp",
        "router",
        "norms",
        "gdn",
        "softmax",
        "routed gdn",
        "routed softmax",
    }
    assert parts["gdn"] / parts["softmax"] == pytest.approx(1.25, abs=0.03)


def test_flops_report():
    report = forward_flops(HybridConfig(), 1024)
    assert sum(report.by_part.values()) == pytest.approx(report.forward_per_token)
    assert report.at_rate(0.0) < report.at_rate(1.0) or report.by_path["gdn"] > report.by_path["softmax"]
    assert report.at_rate(0.5) == pytest.approx((report.at_rate(0.0) + report.at_rate(1.0)) / 2)
    both = report.fixed_per_token + 2 * sum(report.by_path.values())
    assert both == pytest.approx(report.forward_per_token)
    longer = forward_flops(HybridConfig(), 4096)
    assert longer.by_path["softmax"] > 1.5 * report.by_path["softmax"]
    assert longer.by_path["gdn"] == pytest.approx(report.by_path["gdn"], rel=0.01)


@pytest.mark.parametrize("context", ["full_context", "own_context"])
def test_sparse_flops_are_told_where_hardly_a_token_takes_a_path(context):
    config = HybridConfig(**SMALL, context=context)
    flops = [sparse_flops_per_token(config, 100, rate) for rate in (0.0, 0.001, 0.01, 0.99, 0.999, 1.0)]
    assert flops[1] == pytest.approx(flops[0], rel=0.2) and flops[-2] == pytest.approx(flops[-1], rel=0.5)
    assert flops[-1] < flops[-2] < flops[-3] if context == "own_context" else flops[-1] < flops[-2]


def test_compaction_and_back():
    member = torch.tensor([[[0, 1], [1, 1], [0, 0], [1, 0]]]).bool()
    packed = Compaction.of(member)
    assert packed.count.tolist() == [[2, 2]]
    x = torch.arange(8.0).view(1, 4, 2, 1)
    assert packed.gather(x)[0, :2, 0, 0].tolist() == [2.0, 6.0]
    assert packed.gather(x)[0, :2, 1, 0].tolist() == [1.0, 3.0]
    assert torch.equal(packed.restore(packed.gather(x)), x)


def test_masks_of_the_wrong_length_are_refused():
    model = HybridForCausalLM(HybridConfig(**SMALL)).eval()
    ids = torch.randint(1, 61, (1, 6))
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"\(batch, 7\)"):
        model(ids[:, :1], attention_mask=torch.ones(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="use no cache"):
        model(ids, document_ids=torch.zeros_like(ids), past_key_values=cache)


def test_hidden_states_and_tuples():
    model = HybridForCausalLM(HybridConfig(**SMALL)).eval()
    ids = torch.randint(1, 61, (1, 6))
    out = model(ids, output_hidden_states=True, logits_to_keep=2)
    assert len(out.hidden_states) == 5 and out.logits.shape == (1, 2, 61)
    assert isinstance(model(ids, return_dict=False), tuple)


def test_logits_where_a_token_is_predicted_give_the_loss_of_all() -> None:
    """What training on recall data computes, against what everybody else does: value and gradients."""
    model = HybridForCausalLM(HybridConfig(**SMALL)).train()
    inputs = {"input_ids": torch.randint(1, 61, (3, 17))}
    answers = torch.rand(3, 17) < 0.3
    inputs["labels"] = inputs["input_ids"].masked_fill(~answers, -100)
    found = []
    for few in (False, True):
        model.zero_grad()
        torch.manual_seed(1)  # the noise of the estimator
        terms, _, output = HybridLoss(ObjectiveConfig(), few=few)(model, inputs, rate=0.5)
        terms.total.backward()
        found.append((terms.total, *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
    assert output.logits.shape == (1, int(answers[:, 1:].sum()), 61)
    torch.testing.assert_close(found[0], found[1])


COMPILED = """
import torch
from layerroute.hybrid import HybridConfig, HybridForCausalLM

torch.manual_seed(0)
model = HybridForCausalLM(HybridConfig(hidden_size=32, num_attention_heads=2, vocab_size=61)).eval()
ids = torch.randint(1, 61, (2, 70))
with torch.no_grad():
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, backend="aot_eager")(ids, use_cache=False).logits
torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)
model.train()
for trained in (model, torch.compile(model, backend="aot_eager")):
    torch.manual_seed(1)
    model.zero_grad()
    loss = trained(ids, labels=ids).loss
    loss.backward()
    print(loss.item(), model.lm_head.weight.grad.norm().item())
"""


@pytest.mark.slow
def test_torch_compile_gives_the_same_logits():
    # In a process of its own: run-time type checks and the compiler do not go together.
    environment = os.environ | {"LAYERROUTE_NO_TYPECHECK": "1"}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    plain, compiled = ([float(number) for number in line.split()] for line in done.stdout.split("\n")[:2])
    assert compiled == pytest.approx(
        plain, rel=1e-2
    )  # the compiler draws other Gumbel noise in its own order
