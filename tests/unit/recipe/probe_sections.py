"""A capability of the tests' own, so that the loader is judged apart from any real configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layerroute.errors import UserError
from layerroute.recipe.sections import Section


@dataclass(kw_only=True)
class Ramp:
    start: float
    end: float = 0.5


@dataclass(kw_only=True)
class Train:
    max_steps: int = 1000
    learning_rate: float = 1e-3
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    fused: bool = False
    seed_offset: int | None = None
    ramp: Ramp = field(default_factory=lambda: Ramp(start=1.0))
    report_to: list[str] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.95)
    weights: dict[str, float] = field(default_factory=dict)
    notes: str | None = None
    folder: Path = Path("runs")
    size: int | str = 1

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise UserError(f"train.max_steps must be at least 1, got {self.max_steps}")


@dataclass(kw_only=True)
class Routing:
    router: str = "linear"
    rate: float = 0.5


class Foreign:
    """Stands for what a library's configuration declares."""

    def __init__(self, *, cache: bool = True) -> None:
        self.cache = cache


class Model(Foreign):
    """A class that is no dataclass, refuses with a plain ValueError and takes a nested mapping."""

    def __init__(self, *, width: int, heads: int = 1, routing: dict[str, Any] | None = None) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide width {width}")
        self.routing = Routing(**(routing or {}))


SECTIONS = {
    "model": Section(
        configuration=f"{__name__}.Model", build=False, nested={"routing": f"{__name__}.Routing"}
    ),
    "train": Section(configuration=f"{__name__}.Train"),
}
