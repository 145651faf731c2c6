"""Decoder layers: plain ones with one mixer, and routed ones with two."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from layerroute.hybrid.context import TokenContext
from layerroute.hybrid.execution import LayerRoute, gate_of
from layerroute.hybrid.hybrid_config import PATHS, HybridConfig
from layerroute.hybrid.mixers import GatedDeltaMixer, SoftmaxMixer
from layerroute.hybrid.norm import RMSNorm
from layerroute.ops.tokens import TokenIndex

MIXERS: dict[str, type[GatedDeltaMixer] | type[SoftmaxMixer]] = {
    "gdn": GatedDeltaMixer,
    "softmax": SoftmaxMixer,
    "window": SoftmaxMixer,
}


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Apply the MLP to every token."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class PlainBlock(nn.Module):
    """Pre-norm block with one mixer: x + mixer(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: HybridConfig, layer: int, kind: str) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixer = MIXERS[kind](config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: TokenContext,
        *,
        member: Bool[Tensor, "B T M"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the block on every token."""
        hidden = hidden + self.mixer(self.mixer_norm(hidden), context, member=member)
        return hidden + self.mlp(self.mlp_norm(hidden))


class HybridLayer(GradientCheckpointingLayer):
    """One layer of the pattern; ``gate`` and ``choice`` are given to routed layers only."""

    def __init__(self, config: HybridConfig, layer: int) -> None:
        super().__init__()
        self.kind = (config.layer_pattern or [])[layer]
        self.own_context = config.context == "own_context"
        self.per_head = config.granularity == "head"
        self.routed_unit = config.routed_unit
        if self.kind != "routed":
            self.block = PlainBlock(config, layer, self.kind)
            return
        if config.routed_unit == "block":
            self.paths = nn.ModuleDict({path: PlainBlock(config, layer, path) for path in PATHS})
        else:
            self.mixer_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.paths = nn.ModuleDict({path: MIXERS[path](config, layer) for path in PATHS})
            self.mlp_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = GatedMLP(config)
        self.path_norms: nn.ModuleDict | None = None
        if config.normalize_paths:
            norms = {path: RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for path in PATHS}
            self.path_norms = nn.ModuleDict(norms)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        context: TokenContext,
        gate: Float[Tensor, "B T M P"] | None = None,
        choice: Tensor | None = None,
        route: LayerRoute | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Compute every path and let the gate select (masked), or with a ``route`` the chosen paths only (sparse).

        Args:
            hidden: the residual stream.
            context: what mixers need to know.
            gate: multiplies each path's output; M is 1, or the heads.
            choice: (B, T, M) hard choices; ``own_context`` needs them.
            route: who takes which path; padding takes none and keeps its state.
        """
        if self.kind != "routed":
            return self.block(hidden, context)
        assert gate is not None and choice is not None
        if route is not None:
            return self._sparse(hidden, context, gate, route)
        if self.routed_unit == "block":
            change = torch.zeros_like(hidden)
            for index, path in enumerate(PATHS):
                output = (
                    self.paths[path](hidden, context, member=self._member(choice, index, context)) - hidden
                )
                change = change + self._normalize(path, output) * gate[..., index].to(hidden.dtype)
            return hidden + change
        x = self.mixer_norm(hidden)
        mixed = torch.zeros_like(hidden)
        for index, path in enumerate(PATHS):
            weight = gate[..., index]
            member = self._member(choice, index, context)
            if self.per_head:
                output = self._normalize(path, self.paths[path](x, context, member=member, head_gate=weight))
            else:
                output = self._normalize(path, self.paths[path](x, context, member=member))
                output = output * weight.to(output.dtype)
            mixed = mixed + output
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden))

    def _sparse(
        self, hidden: Float[Tensor, "B T D"], context: TokenContext, gate: Tensor, route: LayerRoute
    ) -> Float[Tensor, "B T D"]:
        if self.routed_unit == "block":
            return hidden + self._scatter(hidden, context, gate, route, self._block_change)
        x = self.mixer_norm(hidden)
        if route.heads is not None:
            hidden = hidden + self._head_paths(x, context, gate, route)
        else:
            hidden = hidden + self._scatter(x, context, gate, route, self._mixer_change)
        return hidden + self.mlp(self.mlp_norm(hidden))

    def _scatter(
        self,
        x: Float[Tensor, "B T D"],
        context: TokenContext,
        gate: Tensor,
        route: LayerRoute,
        change: Callable[[str, Tensor, TokenContext, TokenIndex], Tensor],
    ) -> Float[Tensor, "B T D"]:
        """What each token's own path adds to it, padding nothing."""
        parts, places = [], []
        for number, (path, index) in enumerate(zip(PATHS, route.paths, strict=True)):
            part = change(path, x, context, index)
            if index.flat.shape[0] == 0:
                continue
            part = self._normalize(path, part)
            if route.gated:
                part = part * gate_of(gate, number, index).to(part.dtype)
            parts.append(part)
            places.append(index.flat)
        mixed = torch.zeros_like(x).flatten(0, 1)
        if parts:
            mixed = mixed.index_copy(0, torch.cat(places), torch.cat(parts).to(x.dtype))
        return mixed.view_as(x)

    def _mixer_change(self, path: str, x: Tensor, context: TokenContext, index: TokenIndex) -> Tensor:
        update: Tensor = self.paths[path].read(x, context, index, own=self.own_context)  # type: ignore[operator]
        return update

    def _block_change(self, path: str, hidden: Tensor, context: TokenContext, index: TokenIndex) -> Tensor:
        block = self.paths[path]
        assert isinstance(block, PlainBlock)
        before = hidden.flatten(0, 1).index_select(0, index.flat)
        if index.flat.shape[0] == 0 and context.cache is None:
            return before
        update = block.mixer.read(block.mixer_norm(hidden), context, index, own=self.own_context)
        if index.flat.shape[0] == 0:
            return before
        after = before + update
        return after + block.mlp(block.mlp_norm(after)) - before

    def _head_paths(
        self, x: Float[Tensor, "B T D"], context: TokenContext, gate: Tensor, route: LayerRoute
    ) -> Float[Tensor, "B T D"]:
        """Where heads choose apart, attention is computed for the heads that chose it; all else is for all."""
        gdn, softmax = self.paths["gdn"], self.paths["softmax"]
        assert isinstance(softmax, SoftmaxMixer)
        mixed = self._normalize("gdn", gdn(x, context, head_gate=gate[..., 0]))
        read = softmax.read_heads(x, context, route.paths[-1], head_gate=gate[..., -1])
        return mixed + self._normalize("softmax", read)

    def _member(self, choice: Tensor, index: int, context: TokenContext) -> Bool[Tensor, "B T M"] | None:
        """The tokens of one path, if each path sees only its own."""
        if not self.own_context:
            return None
        member = choice == index
        return member if context.valid is None else member & context.valid.unsqueeze(-1)

    def _normalize(self, path: str, output: Tensor) -> Tensor:
        return output if self.path_norms is None else self.path_norms[path](output)
