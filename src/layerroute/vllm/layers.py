"""Carrying out a decoder layer's routes on vLLM's own modules.

State goes from layer to layer as vLLM has it: what the last part added, and the residual stream before (None at first);
their sum is the layer's input h. What nobody runs is not computed, but for keys and values.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import ReplicatedLinear

from layerroute.skipping.skip_config import SkipConfig
from layerroute.skipping.skip_paths import SKIP_PATH_MODULES, LowRankSkip
from layerroute.vllm.kernels import Kernels, Map, linear
from layerroute.vllm.step import SiteRun

State = tuple[Tensor, Tensor | None]

PLANNING = 1 << 21
"""Bytes of keys and values that are read in the time that it takes to plan attention for a part of a step."""


def stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream h. vLLM's norms write in place: it is not to be held while they run."""
    return hidden if residual is None else hidden + residual


class FoldedSkip(nn.Module):
    """A skip path on vLLM's own linear modules, whose products are tuned to few tokens.

    Args:
        hidden_size: D.
        config: names the path, and its rank.
    """

    def __init__(self, hidden_size: int, config: SkipConfig) -> None:
        super().__init__()
        self.inner, rank = SKIP_PATH_MODULES[config.skip_path].inner, config.rank
        options: dict[str, Any] = {"bias": True, "return_bias": False}
        self.down = ReplicatedLinear(hidden_size, rank, **options)
        self.up = ReplicatedLinear(rank, hidden_size, **options)

    @torch.no_grad()
    def fill(self, path: LowRankSkip) -> None:
        """Take the path's maps; (h - mean) A is h A - mean A, whose last part does not depend on tokens."""
        self.down.weight.copy_(path.down.T)
        self.down.bias.copy_(-(path.mean @ path.down))
        self.up.weight.copy_(path.up.T)
        self.up.bias.copy_(path.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """The update of tokens that skip."""
        down, up = self._maps
        inside = down(hidden)
        return up(inside if self.inner is None else self.inner(inside))

    @cached_property
    def _maps(self) -> tuple[Map, Map]:
        return linear(self.down), linear(self.up)


class RoutedLayer:
    """One of vLLM's decoder layers with sites.

    It gives the layer modules of its own: ``kv_proj``, which makes keys and values alone, of the local share of heads,
    where attention may be skipped; and ``skips``, skip paths by unit.

    Args:
        layer: vLLM's.
        config: of the router.
    """

    def __init__(self, layer: Any, config: SkipConfig) -> None:
        self.layer, self.attention = layer, layer.self_attn
        self._bytes = layer.input_layernorm.weight.element_size()
        size = self.attention.qkv_proj.input_size
        if {"block", "attention"} & set(config.units):
            bias = self.attention.qkv_proj.bias is not None
            layer.kv_proj = ReplicatedLinear(size, 2 * self.attention.kv_size, bias=bias, return_bias=False)
        self.skips: Any = nn.ModuleDict()
        if config.skip_path != "identity":
            self.skips.update({unit: FoldedSkip(size, config) for unit in config.units})
        layer.skips = self.skips

    @torch.no_grad()
    def fill(self, paths: dict[str, LowRankSkip | None]) -> list[str]:
        """Take skip paths, and keys and values from the layer's joint projection; names what has been filled."""
        for unit, path in paths.items():
            if path is not None:
                self.skips[unit].fill(path)
        if hasattr(self.layer, "kv_proj"):
            whole, start = self.attention.qkv_proj, self.attention.q_size
            self.layer.kv_proj.weight.copy_(whole.weight[start:])
            if whole.bias is not None:
                self.layer.kv_proj.bias.copy_(whole.bias[start:])
        return [name for name, _ in self.layer.named_parameters() if name.startswith(("kv_proj.", "skips."))]

    @cached_property
    def kernels(self) -> Kernels:
        """The layer's own; not to be asked for before weights were packed."""
        return Kernels(self.layer)

    def __call__(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, routes: dict[str, SiteRun]
    ) -> State:
        """The layer's output; ``routes`` by unit, of units that not all tokens run."""
        if "block" in routes:
            return self._block(positions, hidden, residual, routes["block"])
        hidden, residual = self._attention(positions, hidden, residual, routes.get("attention"))
        return self._mlp(hidden, residual, routes.get("mlp"))

    def _block(self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun) -> State:
        kernels = self.kernels
        states, h = kernels.enter.entered(hidden, residual)
        if not route.count:
            kernels.attention.write(*kernels.keys_values(positions, states))
            return self._nobody("block", h)
        run, skip = route.indices
        if not self._planned(route):
            update = kernels.attend(positions, states).index_fill_(0, skip, 0.0)
            states, h = kernels.between.added(update, h)
            return self._some("block", states, h, route), h
        kept = h.index_select(0, skip)
        update = kernels.attend_some(positions, states, run, skip)
        ran, before = kernels.between.added(update, h.index_select(0, run))
        h.index_copy_(0, run, before)
        out = torch.empty_like(h).index_copy_(0, run, kernels.mlp(ran))
        return out.index_copy_(0, skip, self._skipped("block", kept)), h

    def _attention(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None, route: SiteRun | None
    ) -> State:
        kernels = self.kernels
        states, h = kernels.enter.entered(hidden, residual)
        if route is None:
            return kernels.attend(positions, states), h
        if not route.count:
            kernels.attention.write(*kernels.keys_values(positions, states))
            return self._nobody("attention", h)
        run, skip = route.indices
        if self._planned(route):
            out = torch.empty_like(h)
            out.index_copy_(0, run, kernels.attend_some(positions, states, run, skip))
        else:
            out = kernels.attend(positions, states)
        return out.index_copy_(0, skip, self._skipped("attention", h.index_select(0, skip))), h

    def _mlp(self, hidden: Tensor, residual: Tensor | None, route: SiteRun | None) -> State:
        if route is not None and not route.count:
            return (
                self._nobody("mlp", stream(hidden, residual)) if "mlp" in self._paths else (hidden, residual)
            )
        if residual is None:  # nobody ran this layer's attention
            residual, hidden = hidden, torch.zeros_like(hidden)
        states, h = self.kernels.between.added(hidden, residual)
        return self.kernels.mlp(states) if route is None else self._some("mlp", states, h, route), h

    def _some(self, unit: str, states: Tensor, h: Tensor, route: SiteRun) -> Tensor:
        """(N, D) what the MLP adds to tokens that run, from their normed states, and skipping to the others."""
        run, skip = route.indices
        if route.sparse:
            out = torch.empty_like(h).index_copy_(0, run, self.kernels.mlp(states.index_select(0, run)))
        else:
            out = self.kernels.mlp(states)
        return out.index_copy_(0, skip, self._skipped(unit, h.index_select(0, skip)))

    def _skipped(self, unit: str, h: Tensor) -> Tensor:
        """(M, D) what skipping adds to tokens."""
        return self._paths[unit](h) if unit in self._paths else torch.zeros_like(h)

    def _nobody(self, unit: str, h: Tensor) -> State:
        """State after a site that no token runs, from the stream before it."""
        return (self._paths[unit](h), h) if unit in self._paths else (h, None)

    @cached_property
    def _paths(self) -> dict[str, Map]:
        return {unit: path.forward for unit, path in self.skips.items()}

    def _planned(self, route: SiteRun) -> bool:
        """Whether attention is planned for the tokens that run alone: this costs time of its own."""
        size = 2 * self.kernels.size * self._bytes
        return route.sparse and (route.context is None or route.context * size >= PLANNING)
