"""What a router decided: the one object that objectives, statistics, benchmarks and reports see.

Shapes: B batch, T time, R routed sites, P paths (path 0 is the cheapest, the last path the most expensive).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Chooser = Callable[[tuple[str, ...], Tensor, Tensor | None], Tensor]
"""Decides in a router's stead: (site names, positions (B, T), token ids (B, T) or None) -> choices (B, T, R)."""


@dataclass(frozen=True, kw_only=True)
class RouteDecision:
    """The choice of a path for every token at every site.

    Attributes:
        probabilities: the router's own probabilities, free of noise, temperature and threshold.
        choice: index of the chosen path, the *hard* decision.
        valid: False for padding; padding counts in no statistic and in no loss.
        sites: names, ``"layer3.mixer"`` or ``"layer1.head2"``.
        paths: names, cheapest first, for example ``("gdn", "softmax")`` or ``("skip", "run")``.
        costs: relative cost (forward FLOPs of one token, any common unit) of each path at each site.
        gate: what multiplies the output of each path. In forward it is the one-hot of ``choice`` (unless the
            estimator is ``soft`` and trains); in backward it carries the estimator's gradient to the router.
        causal: False if a decision may depend on later tokens; reports must then say so.
    """

    probabilities: Float[Tensor, "B T R P"]
    choice: Int[Tensor, "B T R"]
    valid: Bool[Tensor, "B T"]
    sites: tuple[str, ...]
    paths: tuple[str, ...]
    costs: Float[Tensor, "R P"]
    gate: Float[Tensor, "B T R P"]
    causal: bool = True

    def __post_init__(self) -> None:
        sites, paths = self.probabilities.shape[-2:]
        if (len(self.sites), len(self.paths)) != (sites, paths):
            raise ValueError(
                f"{len(self.sites)} site names and {len(self.paths)} path names for probabilities of "
                f"{sites} sites and {paths} paths"
            )

    @property
    def expensive(self) -> Bool[Tensor, "B T R"]:
        """True where a valid token takes the most expensive path."""
        return (self.choice == len(self.paths) - 1) & self.valid.unsqueeze(-1)

    def counts(self) -> Int[Tensor, "R P"]:
        """Valid tokens on each path of each site, from hard decisions. These may be summed over ranks."""
        one_hot = F.one_hot(self.choice, len(self.paths)) * self.valid[..., None, None]
        return one_hot.sum(dim=(0, 1))

    def fractions(self) -> Float[Tensor, "R P"]:
        """``counts`` as shares of the valid tokens; NaN where there is no valid token."""
        counts = self.counts().to(torch.float32)
        return counts / counts.sum(dim=-1, keepdim=True)

    def rate(self) -> Float[Tensor, "R"]:
        """Share of valid tokens that take the most expensive path, by site, from hard decisions."""
        return self.fractions()[:, -1]

    def mean_rate(self) -> Float[Tensor, ""]:
        """``rate`` averaged over sites, every site counting the same."""
        return self.rate().mean()

    def cost_weighted_rate(self) -> Float[Tensor, ""]:
        """``rate`` averaged over sites, each weighted by what its expensive path costs beyond its cheapest.

        1 means that all routed compute is spent, 0 that none is beyond the cheapest paths.
        """
        spread = self.costs[:, -1] - self.costs[:, 0]
        spent = (self.fractions() * (self.costs - self.costs[:, :1])).sum(dim=-1)
        return spent.sum() / spread.sum()

    def mean_probabilities(self) -> Float[Tensor, "R P"]:
        """Probabilities averaged over valid tokens; gradients flow to the router."""
        weight = self.valid[..., None, None].to(self.probabilities.dtype)
        return (self.probabilities * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)

    def entropy(self) -> Float[Tensor, "R"]:
        """Entropy in nats of the distribution of hard choices; ln P when balanced, 0 when collapsed."""
        return torch.special.entr(self.fractions()).sum(dim=-1)

    def token_entropy(self) -> Float[Tensor, "R"]:
        """Mean over valid tokens of the entropy in nats of the router's probabilities: how unsure it is."""
        weight = self.valid.unsqueeze(-1).to(self.probabilities.dtype)
        entropy = torch.special.entr(self.probabilities).sum(dim=-1)
        return (entropy * weight).sum(dim=(0, 1)) / weight.sum().clamp_min(1)

    def log_probability(self) -> Float[Tensor, "B T R"]:
        """Log-probability of the chosen path (for policy gradients)."""
        chosen = self.probabilities.gather(-1, self.choice.unsqueeze(-1)).squeeze(-1)
        return chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log()

    def detach(self) -> "RouteDecision":
        """The same decision without its graph."""
        tensors = {
            field.name: getattr(self, field.name).detach()
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)

    @staticmethod
    def one_after_the_other(decisions: Sequence["RouteDecision"]) -> "RouteDecision":
        """Put decisions about the same sites at later and later tokens behind each other."""
        return _joined(decisions, ("probabilities", "choice", "valid", "gate"), dim=1)

    @staticmethod
    def join(decisions: Sequence["RouteDecision"]) -> "RouteDecision":
        """Put decisions about the same tokens at different sites side by side.

        Raises:
            ValueError: if there are none, or if their paths differ.
        """
        if not decisions:
            raise ValueError("no decisions to join")
        first = decisions[0]
        if any(decision.paths != first.paths for decision in decisions):
            raise ValueError(
                f"decisions about different paths cannot be joined: {[d.paths for d in decisions]}"
            )
        if len(decisions) == 1:
            return first
        return _joined(
            decisions,
            ("probabilities", "choice", "gate"),
            dim=2,
            sites=tuple(site for d in decisions for site in d.sites),
            costs=torch.cat([d.costs for d in decisions]),
            causal=all(d.causal for d in decisions),
        )


def _joined(
    decisions: Sequence[RouteDecision], names: Sequence[str], *, dim: int, **others: Any
) -> RouteDecision:
    tensors: Any = {name: torch.cat([getattr(one, name) for one in decisions], dim=dim) for name in names}
    return replace(decisions[0], **tensors, **others)
