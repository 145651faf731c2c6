"""Whether a study's task can tell its arms apart at all, judged before anything is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from layerroute.studies.configuration import GateCondition, GateConfig


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One condition with what the arm's trials reached, the mean over their seeds; None where none completed."""

    condition: GateCondition
    value: float | None

    @property
    def holds(self) -> bool:
        """Whether the arm is where it must be."""
        least, most = self.condition.least, self.condition.most
        return (
            self.value is not None
            and (least is None or self.value >= least)
            and (most is None or self.value <= most)
        )

    def __str__(self) -> str:
        found = "no completed trial" if self.value is None else f"{self.value:.4g}"
        bounds = (("at least", self.condition.least), ("at most", self.condition.most))
        asked = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"{self.condition.arm} {found} ({asked} asked)"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """All conditions of a study's gate, judged."""

    config: GateConfig
    conditions: Sequence[Checked]

    @property
    def passed(self) -> bool:
        """Whether all of them hold."""
        return all(one.holds for one in self.conditions)

    @property
    def verdict(self) -> str:
        """What is said of it."""
        wrong = "; ".join(str(one) for one in self.conditions if not one.holds)
        if not wrong:
            told = "; ".join(map(str, self.conditions))
            return f"The gate is passed: this task can tell. {self.config.metric}: {told}."
        return (
            f"The gate is not passed: this task cannot tell, and the study stops here. {self.config.metric}: {wrong}. "
            "Change the task, not the gate."
        )

    def to_dict(self) -> dict[str, Any]:
        """For ``study.json``."""
        return {
            "metric": self.config.metric,
            "passed": self.passed,
            "conditions": [
                {**asdict(one.condition), "value": one.value, "holds": one.holds} for one in self.conditions
            ],
            "verdict": self.verdict,
        }
