"""Schedules as fractions of the run, so that they end when the run ends, whatever its number of steps."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A value that moves from ``start`` to ``end`` between two fractions of the run.

    Attributes:
        start: value until ``begin``.
        end: value from ``finish`` on.
        begin: fraction of the run, in [0, 1], at which the value begins to move. Default 0.
        finish: fraction of the run at which it has arrived. Default 1.
        shape: ``linear`` (default), ``cosine``, or ``exponential`` (needs both ends above 0).
    """

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= self.finish <= 1.0:
            raise ValueError(
                f"a schedule needs 0 <= begin <= finish <= 1, got begin={self.begin}, finish={self.finish}"
            )
        if self.shape not in ("linear", "cosine", "exponential"):
            raise ValueError(f"schedule shape {self.shape!r} is none of linear, cosine, exponential")
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError("an exponential schedule needs start and end above 0")

    def value(self, progress: float) -> float:
        """The value at ``progress``, the share of the run that is done (clamped to [0, 1])."""
        progress = min(max(progress, 0.0), 1.0)
        if progress <= self.begin:
            return self.start if self.finish > self.begin or progress < self.begin else self.end
        if progress >= self.finish:
            return self.end
        share = (progress - self.begin) / (self.finish - self.begin)
        if self.shape == "cosine":
            share = 0.5 - 0.5 * math.cos(math.pi * share)
        if self.shape == "exponential":
            return self.start * (self.end / self.start) ** share
        return self.start + (self.end - self.start) * share
