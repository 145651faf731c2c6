"""What vLLM cannot serve rightly is refused by name when it loads the model, and the settings that it can are left."""

from types import SimpleNamespace

import pytest

from layerroute.errors import UserError
from layerroute.export.configuration import check_section
from layerroute.skipping import SkipConfig
from layerroute.vllm.engine import check_folder, server_command
from layerroute.vllm.settings import RoutedSettings, check


def settings(family="llama", skip=None, config=None, section=None, model=None, parallel=None, **top):
    skip = SkipConfig(**{"layers": [2, 3], "router_layer": 2} | (skip or {})).to_dict()
    held = {"format": 1, "version": "0", "base_model_type": family, "base": "b", "skip": skip} | (
        section or {}
    )
    fields = {"quantization": None, "runner_type": "generate", "enforce_eager": False} | (model or {})
    sizes = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1} | (parallel or {})
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(layerroute=held, **(config or {})), **fields),
        parallel_config=SimpleNamespace(**sizes),
        **{"speculative_config": None, "lora_config": None, "kv_transfer_config": None} | top,
    )


def test_what_can_be_served_runs_without_graphs():
    found = settings()
    RoutedSettings.verify_and_update_config(found)
    assert found.model_config.enforce_eager
    assert check(settings("qwen3", {"unit": "attention+mlp", "serve": "rate"})).serve == "rate"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline parallelism"),
        ({"parallel": {"tensor_parallel_size": 2}}, "tensor parallelism"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"parallel": {"enable_dbo": True}}, "micro-batches"),
        ({"lora_config": object()}, "LoRA requests"),
        ({"model": {"quantization": "awq"}}, "quantised weights .awq"),
        ({"config": {"quantization_config": {"bits": 4}}}, "quantised weights"),
        ({"kv_transfer_config": object()}, "transfer of keys and values"),
        ({"model": {"runner_type": "pooling"}}, "runner pooling"),
        ({"skip": {"sink_ids": [1]}, "model": {"enable_prompt_embeds": True}}, "prompt embeddings"),
        ({"family": "gemma2"}, "family 'gemma2'"),
        ({"skip": {"granularity": "sequence"}}, "granularity: sequence"),
        ({"skip": {"kv": "evict"}}, "kv: evict"),
        ({"config": {"llama_4_scaling": {"beta": 1}}}, "llama_4_scaling"),
        ({"config": {"is_causal": False}}, "later tokens"),
        ({"family": "qwen2", "config": {"layer_types": ["sliding_attention"]}}, "sliding windows"),
        ({"section": {"format": 2}}, "export format 2"),
        ({"section": {"guard": {}}}, "layerroute.guard"),
        ({"section": {"skip": {"guard": 1}}}, "skip.guard"),
    ],
)
def test_what_cannot_be_served_is_named(change, named):
    with pytest.raises(ValueError, match=named) as told:
        RoutedSettings.verify_and_update_config(settings(**change))
    assert isinstance(told.value, UserError)  # which vLLM takes for a ValueError of its own


def test_a_model_that_is_no_export_is_refused():
    with pytest.raises(UserError, match="layerroute export"):
        check_section(None, "config.json")


def test_a_router_has_to_be_exported_first(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        check_folder(tmp_path)
    (tmp_path / "router.json").write_text("{}")
    with pytest.raises(UserError, match=r"layerroute export .* --to vllm"):
        check_folder(tmp_path)


def test_the_server_counts_in_all_of_its_processes(tmp_path):
    options = {"name": "n", "host": "localhost", "port": 1, "dtype": "auto"}
    command, environment = server_command(tmp_path, **options, more=["--max-num-seqs", "3"])
    assert command[3:5] == ["serve", str(tmp_path)]
    assert command[-2:] == ["--max-num-seqs", "3"]
    assert environment["PROMETHEUS_MULTIPROC_DIR"]
