"""What is measured while training: sums on the device, turned into one curve point at a time."""

from typing import Any

import torch
from torch import Tensor

from layerroute.evaluation.routing_statistics import RoutingAccumulator
from layerroute.routing import RouteDecision
from layerroute.routing.budget import all_reduced
from layerroute.training.objective import LossTerms
from layerroute.training.parallel import running_together


class TrainingMeter:
    """Means since the last curve point, and totals of the run.

    Its state goes into every checkpoint, so that a resumed run continues the same curve whether or not the
    checkpoint fell on a curve point.

    Attributes:
        tokens: trained on so far, over all processes and restarts.
        seconds: spent in training steps so far; evaluation, checkpoints and restarts are not counted.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._point_tokens = 0
        self._point_seconds = 0.0
        self._batches = 0
        self._sums: dict[str, Tensor] = {}
        self._routing = RoutingAccumulator()

    @torch.no_grad()
    def add_batch(self, terms: LossTerms, decision: RouteDecision | None) -> None:
        """Add one (micro-)batch."""
        self._batches += 1
        for name, value in {"loss": terms.total.detach(), **terms.parts}.items():
            self._sums[name] = self._sums.get(name, 0) + value.double()
        if decision is not None:
            self._routing.add(decision)

    def add_step(self, *, tokens: int, seconds: float) -> None:
        """Add the size and the wall time of one finished optimizer step."""
        self.tokens += tokens
        self.seconds += seconds
        self._point_tokens += tokens
        self._point_seconds += seconds

    def take(self) -> dict[str, float]:
        """Means since the last call: loss terms, ``tokens_per_second``, and per site ``rate/…`` and ``entropy/…``."""
        sums, batches, accumulator = self._over_ranks()
        point = {name: float(value) / batches for name, value in sums.items()}
        if self._point_seconds > 0:
            point["tokens_per_second"] = self._point_tokens / self._point_seconds
        routing = accumulator.result()
        if routing is not None:
            point |= {f"rate/{site}": value for site, value in routing.rate.items()}
            point |= {f"entropy/{site}": value for site, value in routing.entropy.items()}
        self._point_tokens, self._point_seconds, self._batches, self._sums = 0, 0.0, 0, {}
        self._routing.reset()
        return point

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exact in JSON, of all processes together: all of them must call it."""
        sums, batches, accumulator = self._over_ranks()
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "point_tokens": self._point_tokens,
            "point_seconds": self._point_seconds,
            "batches": batches,
            "sums": {name: float(value) for name, value in sums.items()},
            "routing": accumulator.state_dict(),
        }

    def _over_ranks(self) -> tuple[dict[str, Tensor], int, RoutingAccumulator]:
        """Sums, micro-batches and decisions since the last curve point, over all processes."""
        if not running_together() or not self._sums:
            return self._sums, self._batches, self._routing
        device = next(iter(self._sums.values())).device
        sums = {name: all_reduced(value) for name, value in sorted(self._sums.items())}
        batches = int(all_reduced(torch.tensor(self._batches, device=device)))
        return sums, batches, self._routing.over_ranks()

    def load_state_dict(
        self, state: dict[str, Any], device: torch.device | str = "cpu", *, share: int = 1
    ) -> None:
        """Restore what ``state_dict`` returned; with ``share`` 0 nothing is added to the sums of the others."""
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self._point_tokens, self._point_seconds = state["point_tokens"], state["point_seconds"]
        self._batches = share * state["batches"]
        self._sums = {
            name: share * torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in state["sums"].items()
        }
        self._routing.load_state_dict(state["routing"], device)
        if not share:
            self._routing.clear_counts()
