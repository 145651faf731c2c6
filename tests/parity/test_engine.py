"""What vLLM serves with our plugin is what transformers computes with the same router, however it schedules the work.

Needs vLLM, which has an environment of its own: ``make vllm``.
"""

import json

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here; `make vllm` runs these")

from layerroute.cli.main import main
from layerroute.routing import RoutingConfig
from tests.parity.engine_models import (
    assert_same,
    engine,
    export,
    generate,
    prompts,
    prompts_routed,
    rates,
    reference,
)
from tests.tiny_pretrained import write_documents

PER_LAYER = {"granularity": "per_layer", "routing": RoutingConfig(router="linear", rate=0.6)}

ROUTERS = {
    "llama token block": ("llama", {}),
    "llama token block identity": ("llama", {"skip_path": "identity"}),
    "llama per_layer mlp": ("llama", {"unit": "mlp", **PER_LAYER}),
    "llama token attention+mlp": ("llama", {"unit": "attention+mlp", "sink_ids": [5, 7]}),
    "llama per_layer block from layer 0": ("llama", {"layers": [0, 1, 3], "router_layer": 0, **PER_LAYER}),
    "llama static": ("llama", {"routing": RoutingConfig(control="static", control_sites=[0, 3])}),
    "mistral per_layer block": ("mistral", PER_LAYER),
    "mistral token attention": ("mistral", {"unit": "attention"}),
    "qwen2 token block": ("qwen2", {}),
    "qwen2 per_layer attention identity": (
        "qwen2",
        {"unit": "attention", "skip_path": "identity", **PER_LAYER},
    ),
    "qwen3 per_layer block": ("qwen3", PER_LAYER),
    "qwen3 per_layer mlp non_linear": ("qwen3", {"unit": "mlp", "skip_path": "non_linear", **PER_LAYER}),
    "qwen3 token mlp identity": ("qwen3", {"unit": "mlp", "skip_path": "identity"}),
    "llama rate token block": ("llama", {"serve": "rate"}),
    "llama rate per_layer mlp": ("llama", {"serve": "rate:0.03", "unit": "mlp", **PER_LAYER}),
    "qwen3 rate per_layer block": ("qwen3", {"serve": "rate", **PER_LAYER}),
}


@pytest.mark.parametrize("execution", ["sparse", "masked"])
@pytest.mark.parametrize("name", ROUTERS)
def test_answers_scores_and_rates_are_those_of_transformers(name, execution, tmp_path):
    family, skip = ROUTERS[name]
    folder = export(tmp_path, family, **skip, execution=execution)
    texts = prompts()
    with engine(folder) as llm:
        found = generate(llm, texts)
        counted = rates(llm)
    expected, run = reference(folder, texts, [answer for answer, _ in found])
    assert_same(found, expected)
    assert counted == run
    served = sum(run[1].values()) / run[0] / len(run[1])
    assert 0.1 < served < 0.95, "the router must matter"


@pytest.mark.parametrize("length", [90, 512])
def test_the_command_measures_what_it_measures_in_transformers(length, tmp_path, capsys):
    """Also in windows of all that the model reads: vLLM always makes a token more."""
    folder = export(tmp_path, vocabulary=300, **PER_LAYER)
    write_documents(tmp_path, {"long": 3}, 700)
    words = [
        "--data",
        str(tmp_path / "long.jsonl"),
        "--sequence-length",
        str(length),
        "--batch-size",
        "2",
        "--json",
    ]
    assert main(["evaluate", str(tmp_path / "router"), *words]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(folder), "--engine", "vllm", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == expected["tokens"] > 2 * length
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=2 / found["tokens"])
    assert found["routing"]["rate"] == pytest.approx(expected["routing"]["rate"], abs=2e-3)


SETTINGS = {
    "one at a time": {"max_num_seqs": 1},
    "prefill in chunks": {"max_num_batched_tokens": 16},
    "auto": {},
}


@pytest.fixture(scope="module", params=["threshold", "rate"])
def served(request, tmp_path_factory):
    """An export, prompts with a common beginning, and the answers to them, a batch at a time."""
    folder = export(tmp_path_factory.mktemp(request.param), "llama", **PER_LAYER, serve=request.param)
    texts = prompts(shared=70)
    with engine(folder) as llm:
        found = generate(llm, texts)
    expected, _ = reference(folder, texts, [answer for answer, _ in found])
    assert_same(found, expected)
    return folder, texts, expected


def answers_only(expected):
    return [(answer, scores[-len(answer) :]) for answer, scores in expected]


@pytest.mark.parametrize("name", SETTINGS)
def test_however_it_is_scheduled(name, served):
    folder, texts, expected = served
    with engine(folder, **SETTINGS[name]) as llm:
        assert_same(generate(llm, texts), expected)


def test_from_the_prefix_cache(served):
    folder, texts, expected = served
    with engine(folder, enable_prefix_caching=True) as llm:
        at_once = generate(llm, texts, scored=False)
        all_computed = rates(llm)[0]
        llm.reset_prefix_cache()
        generate(llm, texts[:1], scored=False)
        before = rates(llm)[0]
        found = generate(llm, texts, scored=False)
        computed = rates(llm)[0] - before
    assert_same(found, answers_only(expected))
    # Asked together of an empty cache, all but one continue a prefix that is computed in the same step.
    assert_same(at_once, answers_only(expected))
    assert all_computed < sum(
        len(text) + len(answer) - 1 for text, (answer, _) in zip(texts, expected, strict=True)
    )
    assert computed <= sum(
        len(text) + len(answer) - 1 - 64 for text, (answer, _) in zip(texts, expected, strict=True)
    )


def test_after_preemption(served):
    folder, texts, expected = served
    with engine(folder, num_gpu_blocks_override=14, max_model_len=192) as llm:
        found = generate(llm, texts, scored=False)
        preempted = sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")
    assert preempted > 0
    assert_same(found, answers_only(expected))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_router_that_lets_all_run_is_plain_vllm_bit_for_bit(family, tmp_path):
    folder = export(tmp_path, family, **PER_LAYER, threshold=-1e9)
    texts = prompts(20)
    with engine(folder) as llm:
        found = generate(llm, texts)
        tokens, run = rates(llm)
    with engine(tmp_path / "base") as llm:
        assert generate(llm, texts) == found
    assert set(run.values()) == {tokens}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_kernels_of_layers_that_all_run_are_plain_vllm_within_round_off(family, tmp_path):
    folder = export(tmp_path, family, **PER_LAYER, threshold=-1e8)
    texts = prompts(20)
    with engine(folder) as llm:
        found = generate(llm, texts)
        tokens, run = rates(llm)
        whole = llm.apply_model(lambda model: len(model.kernels))
    with engine(tmp_path / "base") as llm:
        expected = [(answer, torch.tensor(scores)) for answer, scores in generate(llm, texts)]
    assert set(run.values()) == {tokens} and whole[0] > 0
    assert_same(found, expected)


def test_steps_of_many_requests_run_whole_where_that_is_asked_for(tmp_path):
    folder = export(tmp_path, **PER_LAYER)
    texts = prompts(6)
    asked = {"additional_config": {"layerroute": {"full_depth_from": 3}}}
    with engine(folder, **asked, max_num_seqs=2) as llm:
        few = generate(llm, texts)
    assert_same(few, reference(folder, texts, [answer for answer, _ in few])[0])
    with engine(folder, **asked) as llm:
        many = generate(llm, texts)
        tokens, run = rates(llm)
    # All prompts are read in the first step, by their own routes; from then on six requests decode at once.
    expected, (count, exact) = prompts_routed(folder, texts, [answer for answer, _ in many])
    assert_same(many, expected)
    assert (tokens, run) == (count, exact)
    assert many != few, "full depth must matter"


def watch(part, seen):
    """Tell of each product that one of vLLM's linear modules computes, by whichever way it is asked."""
    product = part.cpu_linear

    def counted(x, *rest):
        seen(part, len(x))
        return product(x, *rest)

    part.cpu_linear = counted


def test_a_layer_that_nobody_runs_is_not_computed(tmp_path):
    folder = export(tmp_path, **PER_LAYER, threshold=1e9, sink_tokens=0)
    seen = []

    def count(model):
        for index in (2, 4):
            layer = model.layers[index]
            attention = layer.self_attn
            for part in (attention.qkv_proj, attention.o_proj, layer.mlp.gate_up_proj, layer.kv_proj):
                watch(part, lambda part, rows: seen.append((type(part).__name__, rows)))

    texts = prompts(3)
    with engine(folder) as llm:
        llm.apply_model(count)
        generate(llm, texts)
    assert {name for name, _ in seen} == {"ReplicatedLinear"}
    assert sum(count for _, count in seen) == 2 * sum(len(text) + 11 for text in texts)


def test_only_tokens_that_run_are_computed(tmp_path):
    folder = export(tmp_path, **PER_LAYER, execution="sparse")
    seen = []
    with engine(folder) as llm:
        llm.apply_model(
            lambda model: watch(model.layers[3].mlp.gate_up_proj, lambda part, rows: seen.append(rows))
        )
        generate(llm, prompts(9))
        tokens, run = rates(llm)
    assert sum(seen) == run["layer3.block"] < tokens
