"""vLLM's own models of four families, whose stack of layers is run by what the router decides."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.utils.torch_utils import set_default_torch_dtype

from layerroute.errors import UserError
from layerroute.routing.serving import held_within
from layerroute.skipping.flops import path_costs
from layerroute.skipping.router import LayerRouter
from layerroute.vllm.kernels import Kernels
from layerroute.vllm.layers import RoutedLayer, stream
from layerroute.vllm.metrics import RateCounters
from layerroute.vllm.settings import check, full_depth_from
from layerroute.vllm.step import SiteRun, SlotMemory, Step, metadata_of

_PREFIX = "layerroute."
_BELOW_ALL = -1e9
"""A threshold that every score is above."""


class RoutedCausalLM:
    """Mixin of vLLM's causal LM: embeddings, layers, norms and head are vLLM's, the way through them is ours.

    Attributes:
        layerroute: the router, in fp32, the same in all processes of a tensor-parallel group.
        rates: tokens that ran, by site.
    """

    supports_lora = False
    supports_pp = False

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
        self.skip = check(vllm_config)
        self.full_depth_from = full_depth_from(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)  # type: ignore[call-arg]
        model: Any = self
        text = vllm_config.model_config.hf_config.get_text_config()
        with set_default_torch_dtype(torch.float32):
            router = LayerRouter(self.skip, text.hidden_size, costs=path_costs(text, self.skip))
        router.execution = "masked"  # what it lays down for transformers is not used here
        model.layerroute = router.eval().requires_grad_(False)
        self.memory, self.rates = SlotMemory(), RateCounters(router.sites)
        self.routed: dict[int, RoutedLayer] = {}
        self.sites: dict[int, list[tuple[str, str]]] = {}
        self.layers: list[Any] = list(model.model.layers)
        self.anchor = self.layers[self.skip.layers[0]].self_attn.attn  # type: ignore[index]
        if held_within(self.skip.serve) is not None and self.anchor.attn_backend.get_name() != "CPU_ATTN":
            raise UserError(
                f"serve: {self.skip.serve} is kept beside the cache of vLLM's CPU backend, and this is "
                f"{self.anchor.attn_backend.get_name()}; export with --serve threshold"
            )
        for index in self.skip.layers or []:
            self.routed[index] = RoutedLayer(self.layers[index], self.skip)
            self.sites[index] = [(unit, f"layer{index}.{unit}") for unit in self.skip.units]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """(N, D) the last states of a step's tokens."""
        model: Any = self
        hidden = model.model.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual: Tensor | None = None
        step = self._step(input_ids, positions)
        if step is None or not self._may_skip():  # a routed model is vLLM's then, bit for bit
            for layer in self.layers:
                hidden, residual = layer(positions, hidden, residual)
        elif step.tokens < len(positions):
            raise UserError("a step of a routed model must not be padded; serve it with --enforce-eager")
        elif self._whole_step(step):
            for kernels in self.kernels:
                hidden, residual = kernels.whole(positions, hidden, residual)
        else:
            for index, kernels in enumerate(self.kernels):
                if index in step.router.deciders:
                    step.decide(index, stream(hidden, residual))
                if routes := self._routes(step, index):
                    hidden, residual = self.routed[index](positions, hidden, residual, routes)
                else:
                    hidden, residual = kernels.whole(positions, hidden, residual)
        if step is not None:
            self.rates.count(step.tokens, dict.fromkeys(step.router.sites, step.tokens) | step.counts)
        out: Tensor = model.model.norm(hidden) if residual is None else model.model.norm(hidden, residual)[0]
        return out

    @cached_property
    def kernels(self) -> list[Kernels]:
        """Of all layers."""
        return [
            self.routed[index].kernels if index in self.routed else Kernels(layer)
            for index, layer in enumerate(self.layers)
        ]

    def _may_skip(self) -> bool:
        """Whether the router may let anybody skip anything, whatever the text."""
        router: Any = self
        routings = router.layerroute.routings
        return held_within(self.skip.serve) is not None or any(
            routing.router is None or bool((routing.thresholds.value > _BELOW_ALL).any())
            for routing in routings
        )

    def _step(self, input_ids: Tensor | None, positions: Tensor) -> Step | None:
        """The step's tokens; None while the engine measures its memory, when every token runs."""
        metadata = metadata_of(self.anchor.layer_name)
        if metadata is None:
            return None
        size = self.anchor.kv_cache.shape[2] if held_within(self.skip.serve) is not None else 0
        router: Any = self
        return Step(router.layerroute, positions, input_ids, metadata, self.memory, size)

    def _whole_step(self, step: Step) -> bool:
        """Whether all run, as so many requests decode that skipping would not pay."""
        return self.full_depth_from is not None and step.decoding and step.tokens >= self.full_depth_from

    def _routes(self, step: Step, index: int) -> dict[str, SiteRun]:
        found = {unit: step.route(site) for unit, site in self.sites.get(index, ())}
        return {unit: route for unit, route in found.items() if route is not None}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the router's weights out, and give vLLM the rest."""
        own: dict[str, Tensor] = {}

        def others() -> Iterable[tuple[str, Tensor]]:
            for name, value in weights:
                if name.startswith(_PREFIX):
                    own[name.removeprefix(_PREFIX)] = value
                else:
                    yield name, value

        loaded: set[str] = super().load_weights(others())  # type: ignore[misc]
        router: LayerRouter = self.layerroute  # type: ignore[attr-defined]
        try:
            router.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"the export does not fit its config.json: {' '.join(str(error).split())}"
            ) from error
        if router.budgets is not None and router.budgets.holds(router.config.budget):
            router.set_budget(router.config.budget)
        for index, layer in self.routed.items():
            filled = layer.fill({unit: router.skip_path(index, unit) for unit in self.skip.units})
            loaded |= {f"model.layers.{index}.{name}" for name in filled}
        return loaded | {f"{_PREFIX}{name}" for name, _ in router.named_parameters()}


class RoutedLlamaForCausalLM(RoutedCausalLM, LlamaForCausalLM):
    """Also SmolLM2, TinyLlama, Llama 3."""


class RoutedMistralForCausalLM(RoutedCausalLM, MistralForCausalLM):
    """Mistral, with its sliding window."""


class RoutedQwen2ForCausalLM(RoutedCausalLM, Qwen2ForCausalLM):
    """Qwen2 and 2.5."""


class RoutedQwen3ForCausalLM(RoutedCausalLM, Qwen3ForCausalLM):
    """Qwen3, with norms of queries and keys."""
