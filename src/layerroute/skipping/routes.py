"""A decision as one layer carries it out."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from layerroute.ops.tokens import TokenIndex
from layerroute.routing.decision import RouteDecision

DENSE = "dense"
"""Every valid token runs: the layer itself is called."""
SKIPPED = "skipped"
"""None runs: the layer is not entered, but for keys and values."""
MASKED = "masked"
"""Everything is computed, the choice selects."""
SPARSE = "sparse"
"""Only tokens that run are computed."""


@dataclass(kw_only=True)
class SiteRoute:
    """What one site does in one call.

    Attributes:
        mode: ``dense``, ``skipped``, ``masked`` or ``sparse``.
        decision: that the site is part of, and ``site``, its index there.
        gated: whether gates carry a gradient (or are soft); else the choice alone counts.
        index: the tokens that run; only in ``sparse``.
    """

    mode: str
    decision: RouteDecision
    site: int
    gated: bool
    index: TokenIndex | None = None

    @property
    def run(self) -> Bool[Tensor, "B T"]:
        """Which tokens run."""
        return self.decision.choice[..., self.site] == len(self.decision.paths) - 1

    @property
    def run_gate(self) -> Float[Tensor, "B T"]:
        """Factor of what running adds."""
        return self.decision.gate[..., self.site, -1]

    @property
    def skip_gate(self) -> Float[Tensor, "B T"]:
        """Factor of what skipping adds."""
        return self.decision.gate[..., self.site, 0]

    def combine(self, hidden: Tensor, ran: Tensor, skipped: Tensor) -> Tensor:
        """(B, T, D) of each token from the path that it takes, both given for all tokens."""
        if not self.gated:
            return torch.where(self.run.unsqueeze(-1), ran, skipped)
        return hidden + _gated(self.run_gate, ran - hidden) + _gated(self.skip_gate, skipped - hidden)

    def gate_skipped(self, hidden: Tensor, skipped: Tensor, index: Tensor | None = None) -> Tensor:
        """(B, T, D) of tokens that skip; with ``index`` into the B·T tokens, (M, D) of those."""
        if not self.gated or skipped is hidden:
            return skipped
        gate = self.skip_gate if index is None else self.skip_gate.flatten()[index]
        return hidden + _gated(gate, skipped - hidden)

    def gate_ran(self, hidden: Tensor, ran: Tensor) -> Tensor:
        """(N, D) of the indexed tokens, which run; ``hidden`` is what they came from."""
        if not self.gated:
            return ran
        assert self.index is not None
        return hidden + _gated(self.run_gate.flatten()[self.index.flat], ran - hidden)


def _gated(gate: Tensor, update: Tensor) -> Tensor:
    return gate.to(update.dtype).unsqueeze(-1) * update
