"""One router, many budgets: rates and thresholds of all sites by budget, and what lies between."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from layerroute.errors import UserError


class Budgets(nn.Module):
    """The table of a router with ``SkipConfig.budgets``.

    Args:
        rates: by budget (the share of routed compute to skip, written as a number), the share of tokens that run at
            each site.

    Attributes:
        known: the budgets, rising.
        thresholds: (K, R), saved with the router: of each budget and site, in logit units. 0 at first.
        current: the budget served.
    """

    rates: Tensor
    thresholds: Tensor

    def __init__(self, rates: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        self.known = sorted(float(name) for name in rates)
        rows = {float(name): list(row) for name, row in rates.items()}
        table = torch.tensor([rows[budget] for budget in self.known], dtype=torch.float32)
        self.register_buffer("rates", table, persistent=False)  # they are in the configuration
        self.register_buffer("thresholds", torch.zeros_like(table))
        self.current = self.known[0]

    def holds(self, budget: float) -> bool:
        """Whether ``budget`` is one of the known ones, or between two of them."""
        return self.known[0] - 1e-6 <= budget <= self.known[-1] + 1e-6

    def choose(self, budget: float) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
        """Rates and thresholds of a budget; between two known ones, on the line that joins them.

        Raises:
            UserError: outside of the known budgets.
        """
        if not self.holds(budget):
            served = (
                f"{self.known[0]:g}" if len(self.known) == 1 else f"{self.known[0]:g} to {self.known[-1]:g}"
            )
            raise UserError(f"this router serves budgets of {served}, not {budget:g}")
        self.current = budget
        for index, known in enumerate(self.known):
            if abs(known - budget) < 1e-6:
                return self.rates[index], self.thresholds[index]
        index = next(i for i, (low, high) in enumerate(pairwise(self.known)) if low < budget < high)
        share = (budget - self.known[index]) / (self.known[index + 1] - self.known[index])
        return self.rates[index].lerp(self.rates[index + 1], share), self.thresholds[index].lerp(
            self.thresholds[index + 1], share
        )

    def scaled(self, rate: float) -> Float[Tensor, "R"]:
        """The present budget's rates, moved in proportion so that their mean is ``rate``."""
        own = self.choose(self.current)[0]
        mean = float(own.mean())
        if abs(rate - mean) < 1e-4:  # calibration shares a budget out in steps
            return own
        if rate > mean:
            return 1 - (1 - own) * ((1 - rate) / max(1 - mean, 1e-9))
        return own * (rate / max(mean, 1e-9))

    def store(self, thresholds: Float[Tensor, "R"]) -> None:
        """Keep the thresholds of the present budget.

        Raises:
            ValueError: if it lies between two known ones.
        """
        for index, known in enumerate(self.known):
            if abs(known - self.current) < 1e-6:
                self.thresholds[index].copy_(thresholds)
                return
        raise ValueError(f"{self.current} is not one of {self.known}")
