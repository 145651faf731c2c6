"""The clock of a run's schedules: its steps, or those of them before which what was asked for had been learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = 0.9


class Pace:
    """How far schedules are, after so many steps.

    A schedule by steps alone takes away what a slow seed has not learnt yet: recall with two pairs, before there are
    more of them; softmax for all tokens, before there are fewer. With a limit the clock stands still after each step at
    which the mean training loss is above it. (Competence-based curricula: Platanios et al. 2019.)

    Args:
        limit: nats a token; of the cross-entropy, as a running mean in which a step counts a tenth. None: the clock
            never stands still.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._mean: float | None = None
        self._steps = 0
        self._now, self._before = 0, 0

    def step_ended(self, loss: float) -> None:
        """A step is over whose cross-entropy, over the whole batch, was ``loss``."""
        self._mean = loss if self._mean is None else _KEPT * self._mean + (1 - _KEPT) * loss
        self._steps += 1
        self._before = self._now
        if self.limit is None or self._mean <= self.limit:
            self._now += 1

    @property
    def waited(self) -> int:
        """Steps after which the clock stood still."""
        return self._steps - self._now

    def after(self, steps: int) -> int:
        """What the clock shows after so many steps of the run.

        With a limit it is known of the latest step and of the one before it.
        """
        if self.limit is None or steps <= 0:
            return max(0, steps)
        known = {self._steps: self._now, self._steps - 1: self._before}
        return known[steps]

    def for_batch(self, batch: int) -> int:
        """What the clock shows for the data of a step: a batch is made while the step before it still runs."""
        return batch if self.limit is None else self.after(batch - 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, exact in JSON."""
        return {"mean": self._mean, "steps": self._steps, "now": self._now, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._mean, self._steps = state["mean"], state["steps"]
        self._now, self._before = state["now"], state["before"]
