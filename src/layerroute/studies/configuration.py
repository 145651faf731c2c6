"""What a study file says. No torch here.

A study file is a YAML file with ``arms``; recipes are named relative to it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layerroute.errors import UserError, expect
from layerroute.recipe import find_recipe, overridden_keys, yaml_reader
from layerroute.recipe.conversion import build_file
from layerroute.records import expect_number

OBJECTIVES: dict[str, Literal["minimize", "maximize"]] = {
    "metrics.validation_loss": "minimize",
    "flops.executed_per_token": "minimize",
}
"""Quality and cost: the two axes of the Pareto front, as keys of the result record."""

_OWN = ("seed", "name")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(kw_only=True)
class ArmConfig:
    """One arm: a recipe, and what is changed in it.

    Attributes:
        recipe: path relative to the study file, or the name of a shipped recipe.
        name: default: the recipe's own.
        overrides: values by dotted key, laid over those that all arms share.
    """

    recipe: str
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TuneConfig:
    """A grid that every arm goes through before its real runs: the same values, so the same number of trials.

    The values of the lowest mean of the first objective are taken. They are chosen on ``seeds`` of their own, so that
    the runs that are reported had no part in the choice.

    Attributes:
        grid: values by dotted key, such as ``{train.learning_rate: [1e-3, 2e-3, 4e-3]}``.
        seeds: of the trials.
        overrides: laid over the arm in the trials alone (fewer steps, say).
    """

    grid: dict[str, list[Any]]
    seeds: list[int]
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect(bool(self.grid), "tune.grid is empty; give values, or leave tune out")
        for key, values in self.grid.items():
            expect(bool(values), f"tune.grid.{key} has no values")
        expect(bool(self.seeds), "tune.seeds is empty; give seeds that are not among the study's")


@dataclass(kw_only=True)
class GateCondition:
    """Where an arm must be.

    Attributes:
        arm: its name.
        least, most: bounds of the gate's metric, both included; one of them at least.
    """

    arm: str
    least: float | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        expect(
            self.least is not None or self.most is not None, f"gate: {self.arm} has neither least nor most"
        )
        expect(
            self.least is None or self.most is None or self.least <= self.most,
            f"gate: {self.arm} has least {self.least} above most {self.most}: nothing is in between",
        )


@dataclass(kw_only=True)
class GateConfig:
    """What must hold before anything is reported: else the task cannot tell the arms apart, and the study stops.

    It is judged by the trials of ``tune``, with the settings that each arm chose, as the mean over ``tune.seeds``. So
    the seeds that are reported have no part in it. The arms that it names have their trials first.

    Attributes:
        conditions: of arms.
        metric: a key of the result record, one of ``objectives``.
    """

    conditions: list[GateCondition]
    metric: str = "metrics.validation_accuracy"

    def __post_init__(self) -> None:
        expect(bool(self.conditions), "gate.conditions is empty; name an arm and a bound, or leave gate out")


@dataclass(kw_only=True)
class RangeConfig:
    """A range of values.

    Attributes:
        low, high: the ends, both included; integers are drawn if both are integers.
        log: draw evenly in the logarithm.
    """

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        expect(
            math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high,
            f"a range goes from low to high, got {self.low} to {self.high}",
        )
        expect(not self.log or self.low > 0, f"a range with log must start above 0, got {self.low}")


@dataclass(kw_only=True)
class SweepConfig:
    """Recipe keys that are varied in every arm.

    Attributes:
        keys: by dotted key a list of values, or a range ``{low, high, log}``.
        sampler: ``grid`` tries every combination (lists only), each an arm of its own; ``random``, ``tpe`` and
            ``nsga2`` (multi-objective, evolutionary) draw ``trials`` combinations in each arm, by Optuna.
        trials: for each arm; not for ``grid``.
        seed: of the sampler.
    """

    keys: dict[str, list[Any] | RangeConfig]
    sampler: Literal["grid", "random", "tpe", "nsga2"] = "grid"
    trials: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        expect(bool(self.keys), "sweep.keys is empty; name the recipe keys to vary, or leave sweep out")
        for key, values in self.keys.items():
            expect(isinstance(values, RangeConfig) or bool(values), f"sweep.keys.{key} has no values")
            expect(
                self.sampler != "grid" or isinstance(values, list),
                f"sweep.keys.{key} is a range, and sampler 'grid' needs values; give a list, or the sampler 'random'",
            )
        if self.sampler == "grid":
            expect(self.trials is None, "sweep.trials is for the other samplers: 'grid' tries everything")
        else:
            expect(
                self.trials is not None and self.trials >= 1,
                f"sweep.trials is {self.trials}; sampler {self.sampler!r} needs a number of trials for each arm",
            )


@dataclass(kw_only=True)
class StudyConfig:
    """Arms × seeds, or a sweep, and what they are judged by.

    Attributes:
        name: of the study in the storage; default: the file's own name.
        arms: recipes, each a path or an :class:`ArmConfig`.
        seeds: every arm is run with each.
        overrides: values by dotted key, shared by all arms.
        tune: a grid that every arm goes through first.
        gate: what the trials of ``tune`` must show before any run is made that is reported.
        sweep: recipe keys to vary.
        objectives: keys of the result record, each ``minimize`` or ``maximize``; the first one chooses in ``tune``.
        retries: how often a run is begun again after its worker died. A run that failed by itself is not repeated.
    """

    name: str
    arms: list[str | ArmConfig]
    seeds: list[int]
    overrides: dict[str, Any] = field(default_factory=dict)
    tune: TuneConfig | None = None
    gate: GateConfig | None = None
    sweep: SweepConfig | None = None
    objectives: dict[str, Literal["minimize", "maximize"]] = field(default_factory=lambda: dict(OBJECTIVES))
    retries: int = 2

    def __post_init__(self) -> None:
        expect(
            bool(_NAME.fullmatch(self.name)),
            f"name is {self.name!r}; it must be made of letters, digits, '.', '_' and '-'",
        )
        expect(bool(self.arms), "arms is empty; name a recipe")
        for name, seeds in (("seeds", self.seeds), ("tune.seeds", self.tune.seeds if self.tune else [])):
            expect(len(set(seeds)) == len(seeds), f"{name} has a seed twice: {seeds}")
        expect(bool(self.seeds), "seeds is empty; a claim needs three or more")
        both = sorted(set(self.seeds) & set(self.tune.seeds if self.tune else ()))
        expect(
            not both,
            f"tune.seeds and seeds share {both}: the seeds that choose must not be the seeds that are reported",
        )
        expect(
            bool(self.objectives), "objectives is empty; leave it out for validation loss and executed FLOPs"
        )
        for key in self.objectives:
            expect_number(key)
        expect(self.retries >= 0, f"retries is {self.retries}; it must not be negative")
        if self.gate is not None:
            expect(
                self.tune is not None, "gate is judged by the trials of tune: give tune, or leave gate out"
            )
            expect(
                self.gate.metric in self.objectives,
                f"gate.metric is {self.gate.metric}, which is not among objectives: {', '.join(self.objectives)}",
            )
        sampled = self.sweep is not None and self.sweep.sampler != "grid"
        expect(
            not (sampled and self.tune),
            "tune and a sampled sweep do not go together: put the keys of tune.grid into sweep.keys",
        )
        for section, keys in (
            ("overrides", self.overrides),
            *(
                (f"arms: {arm.recipe}: overrides", arm.overrides)
                for arm in self.arms
                if not isinstance(arm, str)
            ),
            ("tune.overrides", self.tune.overrides if self.tune else {}),
            *self.varied.items(),
        ):
            for key in _OWN:
                expect(key not in keys, f"{section}: {key} is the study's own; leave it out")
        twice = _overlap(self.varied["tune.grid"], self.varied["sweep.keys"])
        expect(twice is None, f"tune.grid and sweep.keys both have {twice}; leave it out of one of them")

    @property
    def varied(self) -> dict[str, list[str]]:
        """The keys that runs differ in, by the section that has them."""
        return {
            "tune.grid": list(self.tune.grid if self.tune else ()),
            "sweep.keys": list(self.sweep.keys if self.sweep else ()),
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file: where it is, what it says, and what the command line lays over all of its arms."""

    file: Path
    config: StudyConfig
    overrides: Mapping[str, Any] = field(default_factory=dict)


def load_study(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study file, or the shipped study of that name.

    Args:
        overrides: values by dotted recipe key, for every run: laid over all overrides of the file.

    Raises:
        UserError: the file cannot be read, a key or value does not fit, or an override is of a key that the study
            varies; the message names both.
    """
    file = find_recipe(path)
    tree = yaml_reader.read_mapping(file)
    if "arms" not in tree:
        raise UserError(
            f"{file} is not a study: it has no 'arms'. A recipe is trained by `layerroute train`."
        )
    config = build_file(StudyConfig, {"name": file.stem, **tree}, file, "studies")
    given = overridden_keys(overrides or {})
    for key in _OWN:
        expect(key not in given, f"--{key}: {key} is the study's own; leave it out")
    for section, keys in config.varied.items():
        taken = _overlap(given, keys)
        expect(taken is None, f"--{taken}: {file} varies it in {section}; change it there")
    return Study(file=file, config=config, overrides=overrides or {})


def _overlap(keys: Sequence[str], others: Sequence[str]) -> str | None:
    """The first of some dotted keys that is one of the others, or within or around one of them."""
    for key in keys:
        if any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in others):
            return key
    return None


def short(keys: Mapping[str, Any]) -> str:
    """A part of a run's name for values by dotted key: ``{"model.routing.rate": 0.25}`` → ``rate0.25``."""
    return "-".join(f"{key.rpartition('.')[2]}{_word(value)}" for key, value in keys.items())


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return short(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "_".join(map(_word, value))
    text = f"{value:g}" if isinstance(value, float) else str(value).lower()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text.replace("+", ""))
