"""Routing statistics over many batches, from decisions alone."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from layerroute.objectives import switch_loss
from layerroute.routing import RouteDecision
from layerroute.routing.budget import all_reduced


@dataclass(frozen=True, kw_only=True)
class RoutingStatistics:
    """Where the valid tokens of many batches went. Mappings are by site.

    Attributes:
        tokens: valid tokens seen.
        rate: share on the expensive path, from hard choices.
        entropy: −Σ p ln p in nats of the distribution of hard choices: ln 2 = 0.693 when two paths are used
            equally, 0 when one is never used.
        token_entropy: mean over tokens of the entropy of the router's probabilities: how unsure it is of a token.
        fraction: share of each path, cheapest path first.
        balance_loss: Switch loss of the batches, averaged with their numbers of tokens.
        cost_weighted_rate: mean rate, each site weighted by what its expensive path costs beyond the cheapest.
    """

    sites: tuple[str, ...]
    paths: tuple[str, ...]
    causal: bool
    tokens: int
    rate: dict[str, float]
    entropy: dict[str, float]
    token_entropy: dict[str, float]
    fraction: dict[str, list[float]]
    balance_loss: float
    cost_weighted_rate: float

    @property
    def mean_rate(self) -> float:
        """Mean of ``rate`` over sites."""
        return sum(self.rate.values()) / len(self.rate)

    def record(self) -> dict[str, Any]:
        """What every record says of routing, for its ``routing`` section."""
        return {
            "sites": list(self.sites),
            "paths": list(self.paths),
            "expensive_path": self.paths[-1],
            "rate": self.rate,
            "entropy": self.entropy,
            "token_entropy": self.token_entropy,
            "mean_rate": self.mean_rate,
            "balance_loss": self.balance_loss,
            "tokens": self.tokens,
            "causal": self.causal,
        }


# What is added up, in the order in which processes reduce it.
_DTYPES = {
    "counts": torch.int64,
    "token_entropy": torch.float64,
    "balance": torch.float64,
    "tokens": torch.int64,
}


@dataclass(kw_only=True)
class RoutingAccumulator:
    """Adds up decisions; counts are exact integers, so sums do not depend on the order of batches.

    Nothing is moved to the host before ``result`` or ``state_dict`` is called.
    """

    sites: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    causal: bool = True
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _costs: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @torch.no_grad()
    def add(self, decision: RouteDecision) -> None:
        """Count a batch; padding counts nowhere."""
        decision = decision.detach()
        tokens = decision.valid.sum()
        weight = tokens.double()
        batch = {
            "counts": decision.counts(),
            "token_entropy": decision.token_entropy().double() * weight,
            "balance": switch_loss(decision).double() * weight,
            "tokens": tokens,
        }
        self.causal = self.causal and decision.causal
        if not self._sums:
            self.sites, self.paths, self._costs = decision.sites, decision.paths, decision.costs
            self._sums = batch
            return
        if (decision.sites, decision.paths) != (self.sites, self.paths):
            raise ValueError(
                f"decisions of other sites or paths cannot be added: {decision.sites} {decision.paths}, "
                f"expected {self.sites} {self.paths}"
            )
        self._sums = {name: self._sums[name] + value for name, value in batch.items()}

    def result(self) -> RoutingStatistics | None:
        """The statistics so far, None if no valid token was seen."""
        if not self._sums or int(self._sums["tokens"]) == 0:
            return None
        sums: dict[str, Any] = {name: value.tolist() for name, value in self._sums.items()}
        tokens: int = sums["tokens"]
        shares = [[count / tokens for count in row] for row in sums["counts"]]
        costs = self._costs.double().tolist()
        spread = sum(row[-1] - row[0] for row in costs)
        spent = sum(
            share * (cost - costs_row[0])
            for row, costs_row in zip(shares, costs, strict=True)
            for share, cost in zip(row, costs_row, strict=True)
        )
        return RoutingStatistics(
            sites=self.sites,
            paths=self.paths,
            causal=self.causal,
            tokens=tokens,
            rate={site: row[-1] for site, row in zip(self.sites, shares, strict=True)},
            entropy={site: _entropy(row) for site, row in zip(self.sites, shares, strict=True)},
            token_entropy={
                site: value / tokens for site, value in zip(self.sites, sums["token_entropy"], strict=True)
            },
            fraction=dict(zip(self.sites, shares, strict=True)),
            balance_loss=sums["balance"] / tokens,
            cost_weighted_rate=spent / spread if spread else 0.0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which ``load_state_dict`` restores the sums exactly; JSON can hold them."""
        if not self._sums:
            return {}
        return {
            "sites": list(self.sites),
            "paths": list(self.paths),
            "causal": self.causal,
            **{name: value.tolist() for name, value in self._sums.items()},
            "costs": self._costs.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Restore what ``state_dict`` returned; an empty state clears the sums."""
        self.reset()
        if state:
            self.sites, self.paths = tuple(state["sites"]), tuple(state["paths"])
            self.causal = state["causal"]
            self._sums = {
                name: torch.tensor(state[name], dtype=dtype, device=device) for name, dtype in _DTYPES.items()
            }
            self._costs = torch.tensor(state["costs"], dtype=torch.float32, device=device)

    def over_ranks(self) -> "RoutingAccumulator":
        """The sums of all processes of a distributed run together; all of them must call it."""
        return replace(self, _sums={name: all_reduced(value) for name, value in self._sums.items()})

    def clear_counts(self) -> None:
        """Set all sums to zero, but keep sites and paths: this process adds nothing to the others' sums."""
        self._sums = {name: torch.zeros_like(value) for name, value in self._sums.items()}

    def reset(self) -> None:
        """Forget all that was added."""
        self._sums, self.causal = {}, True


def _entropy(shares: list[float]) -> float:
    return sum(-share * math.log(share) for share in shares if share > 0) + 0.0  # + 0.0: no negative zero
