"""What vLLM cannot serve rightly is refused by name when it loads the model, and the settings that it can are left."""

import os
from argparse import Namespace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from layerroute.benchmark.engine import Engines, conclude, layers_out
from layerroute.errors import UserError
from layerroute.exporting.configuration import check_section
from layerroute.skipping import SkipConfig, get_router
from layerroute.vllm.engine import _cut, _listen, check_folder, server_command
from layerroute.vllm.settings import RoutedSettings, check, full_depth_from
from tests.parity.skipping_models import VOCABULARY, routed, sharpen


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
        ({"config": {"num_hidden_layers": 3}}, "3 layers"),
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


def told(least, **skip):
    return settings(skip=skip, additional_config={"layerroute": {"full_depth_from": least}})


def test_steps_of_many_requests_may_run_whole():
    assert full_depth_from(settings()) is None
    assert full_depth_from(settings(additional_config={"another plugin": 1})) is None
    assert full_depth_from(told(8)) == 8


@pytest.mark.parametrize(
    ("held", "named"),
    [
        (told(1), "2 or more, and this is 1"),
        (told("8"), "and this is '8'"),
        (told(True), "and this is True"),
        (told(8, serve="rate"), "holds its rate"),
        (settings(additional_config={"layerroute": {"full_depth": 8}}), "full_depth_from and nothing else"),
        (settings(additional_config={"layerroute": 8}), "full_depth_from and nothing else"),
    ],
)
def test_another_setting_of_the_plugin_is_named(held, named):
    with pytest.raises(UserError, match=named):
        RoutedSettings.verify_and_update_config(held)


def test_a_model_that_is_no_export_is_refused():
    with pytest.raises(UserError, match="layerroute export"):
        check_section(None, "config.json")


def test_a_router_has_to_be_exported_first(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        check_folder(tmp_path)
    (tmp_path / "router.json").write_text("{}")
    with pytest.raises(UserError, match=r"layerroute export .* --to vllm"):
        check_folder(tmp_path)


def test_the_servers_command_has_what_was_asked_for(tmp_path):
    options = {"name": "n", "host": "localhost", "port": 1, "dtype": "auto"}
    command, _ = server_command(tmp_path, **options, more=["--max-num-seqs", "3"])
    assert command[3:5] == ["--model", str(tmp_path)]
    assert command[-2:] == ["--max-num-seqs", "3"]
    command, _ = server_command(tmp_path, **options, full_depth_from=8, more=[])
    assert command[-2:] == ["--additional-config", '{"layerroute": {"full_depth_from": 8}}']
    for own in (["--additional-config", "{}"], ["--additional_config.layerroute.full_depth_from", "4"]):
        assert server_command(tmp_path, **options, more=own)[0][-2:] == own
        with pytest.raises(UserError, match="give one of the two"):
            server_command(tmp_path, **options, full_depth_from=8, more=own)


def test_the_server_keeps_freed_memory_unless_told_otherwise(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    options = {"name": "n", "host": "localhost", "port": 1, "dtype": "auto", "more": []}
    assert int(server_command(tmp_path, **options)[1]["MALLOC_MMAP_THRESHOLD_"]) == 1 << 30
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    assert "MALLOC_MMAP_THRESHOLD_" not in server_command(tmp_path, **options)[1]


def cut_at(skip, fixed=False):
    """A token router cut as the benchmark cuts it, and the share of the same tokens that then skips at each site."""
    model = routed("llama", granularity="token", sink_tokens=0)
    sharpen(model)
    handle = get_router(model)
    if fixed:
        last = handle.all_routings()[0].router.linears()[-1]
        with torch.no_grad():
            last.weight[1] = 0.0
    ids = torch.randint(2, VOCABULARY, (8, 48), generator=torch.Generator().manual_seed(3))
    held = SimpleNamespace(layerroute=handle)
    _listen(held)
    model(input_ids=ids, use_cache=False)
    thresholds = _cut(held, skip)
    model(input_ids=ids, use_cache=False)
    return thresholds, 1.0 - handle.last.choice.float().mean(dim=(0, 1))


@torch.no_grad()
def test_a_cut_serves_the_share_at_every_site():
    thresholds, skipped = cut_at(0.25)
    assert len(thresholds) == len(skipped) == 4
    assert skipped.tolist() == pytest.approx([0.25] * 4, abs=0.01)


@torch.no_grad()
def test_sites_that_decide_alike_for_all_tokens_cannot_be_cut():
    with pytest.raises(UserError, match=r"at layer3\.block: the router decides alike"):
        cut_at(0.25, fixed=True)


@pytest.mark.parametrize(("served", "out"), [(0.0, 0), (0.01, 0), (0.25, 6), (0.59, 15), (1.0, 24)])
def test_the_limit_leaves_out_what_is_served(served, out):
    assert layers_out(served, 25) == out


def test_only_one_limit_is_in_memory_at_a_time():
    engines, ended = Engines(Namespace()), []
    names = ["plain", "routed", "limit 6", "limit 7"]
    engines._running = {name: SimpleNamespace(stop=partial(ended.append, name)) for name in names}
    engines._end_others("limit 7")
    assert ended == ["limit 6"]
    assert list(engines._running) == ["plain", "routed", "limit 7"]


def test_two_equal_arms_say_what_is_noise():
    def row(again):
        speeds = {"plain": 1.0, "plain again": again, "routed": 1.1}
        return {
            "title": "t",
            "arms": {name: {"speedup": {"median": value}} for name, value in speeds.items()},
        }

    found, lines = conclude({"rows": [row(1.02), row(0.93)]})
    assert found == {}
    assert "up to 7% apart" in lines[0]
