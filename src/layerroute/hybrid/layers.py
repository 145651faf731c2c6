"""Decoder layers: plain ones with one mixer, and routed ones with two."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from layerroute.hybrid.configuration import PATHS, HybridConfig
from layerroute.hybrid.context import TokenContext
from layerroute.hybrid.mixers import GatedDeltaMixer, SoftmaxMixer
from layerroute.hybrid.norm import RMSNorm

MIXERS: dict[str, type[GatedDeltaMixer] | type[SoftmaxMixer]] = {
    "gdn": GatedDeltaMixer,
    "softmax": SoftmaxMixer,
}


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
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
    ) -> Float[Tensor, "B T D"]:
        """Masked execution: every path is computed and the gate selects.

        Args:
            hidden: the residual stream.
            context: what mixers need to know.
            gate: multiplies each path's output; M is 1, or the heads.
            choice: (B, T, M) hard choices; ``own_context`` needs them.
        """
        if self.kind != "routed":
            return self.block(hidden, context)
        assert gate is not None and choice is not None
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

    def _member(self, choice: Tensor, index: int, context: TokenContext) -> Bool[Tensor, "B T M"] | None:
        """The tokens of one path, if each path sees only its own."""
        if not self.own_context:
            return None
        member = choice == index
        return member if context.valid is None else member & context.valid.unsqueeze(-1)

    def _normalize(self, path: str, output: Tensor) -> Tensor:
        return output if self.path_norms is None else self.path_norms[path](output)
