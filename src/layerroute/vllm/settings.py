"""Which of vLLM's settings a routed model can serve under. All else is refused by name when the model is loaded."""

from collections.abc import Iterator
from typing import Any

from layerroute.errors import UserError
from layerroute.exporting.configuration import check_section, vllm_obstacle
from layerroute.routing.serving import held_within
from layerroute.skipping.skip_config import SkipConfig


class RoutedSettings:
    """vLLM asks this when it puts its configuration together."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what cannot be served, and run without graphs of the whole model: what runs depends on the tokens."""
        check(vllm_config)
        full_depth_from(vllm_config)
        vllm_config.model_config.enforce_eager = True

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing to do."""


def full_depth_from(vllm_config: Any) -> int | None:
    """From how many requests on a step that only decodes runs every layer; None: whatever their number.

    In ``additional_config``, where vLLM keeps what plugins are told: ``{"layerroute": {"full_depth_from": 8}}``. Then
    an answer depends on how many others are being written: tokens of such steps are the base model's own.

    Raises:
        UserError: naming what is no such setting, or a router whose held rate would not be held.
    """
    told = getattr(vllm_config, "additional_config", None)
    own = told.get("layerroute", {}) if isinstance(told, dict) else {}
    if not isinstance(own, dict) or set(own) - {"full_depth_from"}:
        raise UserError(
            f"additional_config: layerroute has full_depth_from and nothing else, and this is {own!r}"
        )
    least = own.get("full_depth_from")
    if least is None:
        return None
    if type(least) is not int or least < 2:
        raise UserError(f"full_depth_from is a number of requests, 2 or more, and this is {least!r}")
    if held_within(check(vllm_config).serve) is not None:
        raise UserError(
            "full_depth_from lets tokens run that should skip, and this router holds its rate (serve: rate); export it "
            "with --serve threshold"
        )
    return least


def check(vllm_config: Any) -> SkipConfig:
    """The router's configuration, if vLLM is set so that it can be served.

    Raises:
        UserError: naming what stands in the way. A ``ValueError``: vLLM shows it and stops.
    """
    config = vllm_config.model_config.hf_config
    section = check_section(getattr(config, "layerroute", None), "config.json")
    skip = SkipConfig.from_dict(section["skip"])
    obstacle = vllm_obstacle(skip, section["base_model_type"], config)
    if obstacle is not None:
        raise UserError(f"this router cannot be served by vLLM: {obstacle}")
    for what in _obstacles(vllm_config, config, skip):
        raise UserError(f"a routed model cannot be served with {what}")
    return skip


def _obstacles(vllm_config: Any, config: Any, skip: SkipConfig) -> Iterator[str]:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if vllm_config.speculative_config is not None:
        yield "speculative decoding (speculative_config): drafted tokens would enter the routing's memory"
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism (pipeline_parallel_size): decisions are made in one process"
    if parallel.tensor_parallel_size > 1:
        yield "tensor parallelism (tensor_parallel_size): no test has shown that all processes decide alike"
    for key in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, key, 1) > 1:
            yield f"context parallelism ({key}): skipped layers write whole keys"
    if getattr(parallel, "enable_dbo", False):
        yield "micro-batches (enable_dbo)"
    if vllm_config.lora_config is not None:
        yield "LoRA requests (enable_lora): export merges the router's own adapter"
    if model.quantization is not None or getattr(config, "quantization_config", None):
        yield f"quantised weights ({model.quantization or 'quantization_config'})"
    if vllm_config.kv_transfer_config is not None:
        yield "transfer of keys and values (kv_transfer_config): layers that are skipped do not wait for it"
    if model.runner_type != "generate":
        yield f"runner {model.runner_type}: it generates text"
    depth = getattr(config, "num_hidden_layers", None)
    if depth is not None and max(skip.layers or [0]) >= depth:
        yield f"{depth} layers (num_hidden_layers): its router decides about layer {max(skip.layers or [0])}"
    if skip.sink_ids and getattr(model, "enable_prompt_embeds", False):
        yield "prompt embeddings (enable_prompt_embeds): its separators are known by token id"
