"""Decoder layers: plain ones with one mixer, and routed ones with two."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from layerroute.hybrid.context import TokenContext
from layerroute.hybrid.execution import LayerRoute
from layerroute.hybrid.hybrid_config import PATHS, HybridConfig
from layerroute.hybrid.mixers import GatedDeltaMixer, RMSNorm, SoftmaxMixer
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
        self.whole = config.routed_unit == "block"
        if self.kind != "routed":
            self.block = PlainBlock(config, layer, self.kind)
            return
        if self.whole:
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
            gate: multiplies each path's output; M is 1, or the heads.
            choice: (B, T, M) hard choices; ``own_context`` needs them.
            route: who takes which path; padding takes none and keeps its state.
        """
        if self.kind != "routed":
            return self.block(hidden, context)
        assert gate is not None and choice is not None
        if route is not None:
            return self._sparse(hidden, context, gate, route)
        x = hidden if self.whole else self.mixer_norm(hidden)
        mixed = torch.zeros_like(hidden)
        for index, path in enumerate(PATHS):
            weight, member = gate[..., index], self._member(choice, index, context)
            if self.per_head:
                output = self._normalize(path, self.paths[path](x, context, member=member, head_gate=weight))
            else:
                output = self.paths[path](x, context, member=member)
                output = self._normalize(path, output - hidden if self.whole else output)
                output = output * weight.to(output.dtype)
            mixed = mixed + output
        return self._close(hidden + mixed)

    def _sparse(
        self, hidden: Float[Tensor, "B T D"], context: TokenContext, gate: Tensor, route: LayerRoute
    ) -> Float[Tensor, "B T D"]:
        x = hidden if self.whole else self.mixer_norm(hidden)
        if route.heads is not None:
            return self._close(hidden + self._head_paths(x, context, gate, route))
        return self._close(hidden + self._scatter(x, context, gate, route))

    def _close(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The MLP that both paths of a routed mixer share."""
        return hidden if self.whole else hidden + self.mlp(self.mlp_norm(hidden))

    def _scatter(
        self, x: Float[Tensor, "B T D"], context: TokenContext, gate: Tensor, route: LayerRoute
    ) -> Float[Tensor, "B T D"]:
        """What each token's own path adds to it, padding nothing."""
        parts, places = [], []
        for number, (path, index) in enumerate(zip(PATHS, route.paths, strict=True)):
            part = self._change(path, x, context, index)
            if index.flat.shape[0] == 0:
                continue
            part = self._normalize(path, part)
            if route.gated:
                factor = gate[:, :, 0, number].flatten()[index.flat].unsqueeze(-1)
                part = part * factor.to(part.dtype)
            parts.append(part)
            places.append(index.flat)
        mixed = torch.zeros_like(x).flatten(0, 1)
        if parts:
            mixed = mixed.index_copy(0, torch.cat(places), torch.cat(parts).to(x.dtype))
        return mixed.view_as(x)

    def _change(self, path: str, x: Tensor, context: TokenContext, index: TokenIndex) -> Tensor:
        """What the indexed tokens' path adds to them: a mixer's output, or all of a block."""
        block: Any = self.paths[path]
        if not self.whole:
            return block.read(x, context, index, own=self.own_context)
        before = x.flatten(0, 1).index_select(0, index.flat)
        if index.flat.shape[0] == 0 and context.cache is None:
            return before
        update = block.mixer.read(block.mixer_norm(x), context, index, own=self.own_context)
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
