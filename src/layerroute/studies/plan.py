"""From a study file to the runs that it asks for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layerroute.errors import UserError, nearest
from layerroute.recipe import Recipe, find_recipe, load_recipe, merge_overrides
from layerroute.recipe.conversion import show
from layerroute.studies.configuration import ArmConfig, Study, StudyConfig, short
from layerroute.training.hybrid import resolved_recipe
from layerroute.training.recipe_checks import check_recipe
from layerroute.training.run_directory import recipe_fingerprint

RUNS, SEARCH = "runs", "search"
"""Folders of a study: what is reported, and the trials by which each arm chose its settings."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An arm of the study: a recipe with its overrides. Arms of a grid sweep are variants of one arm."""

    name: str
    file: Path
    overrides: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run.

    Attributes:
        key: its folder below the study's: ``runs/dynamic-seed1``.
        settings: what ``tune`` or a sampler chose, by dotted key.
        fingerprint: of the resolved recipe.
    """

    key: str
    variant: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str


class Plan:
    """All that follows from the study file alone.

    Raises:
        UserError: a recipe cannot be read, an override does not fit it, or two arms, or two points of a grid, have one
            name.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.config = study, study.config
        self._runs: dict[tuple[str, str], PlannedRun] = {}
        _check_points("sweep.keys", study.file, _sweep_points(self.config))
        _check_points("tune.grid", study.file, grid(self.config.tune.grid) if self.config.tune else ())
        variants = list(_variants(study))
        self.variants = {variant.name: variant for variant in variants}
        if len(self.variants) < len(variants):
            names = [variant.name for variant in variants]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"{study.file}: two arms are named {twice[0]!r}; give one of them another 'name'")
        for arm in self.gated:
            if arm not in self.variants:
                raise UserError(
                    f"{study.file}: gate: there is no arm {arm!r}.{nearest(arm, list(self.variants))}"
                )

    @property
    def gated(self) -> list[str]:
        """Arms whose trials decide whether anything else is run."""
        gate = self.config.gate
        return [] if gate is None else list(dict.fromkeys(one.arm for one in gate.conditions))

    @property
    def sampled(self) -> bool:
        """Whether an Optuna sampler chooses what is run."""
        return self.config.sweep is not None and self.config.sweep.sampler != "grid"

    def recipe(self, variant: str, seed: int, settings: Mapping[str, Any], name: str | None = None) -> Recipe:
        """The recipe of one run; ``name`` defaults to the variant's."""
        chosen = self.variants[variant]
        own = {"name": name or variant, "seed": seed}
        recipe = load_recipe(
            chosen.file, merge_overrides(chosen.overrides, settings, self.study.overrides, own)
        )
        check_recipe(recipe)
        return recipe

    def trial_runs(self, variant: str) -> list[PlannedRun]:
        """The runs in which an arm chooses its settings; empty without ``tune``."""
        tune = self.config.tune
        if tune is None:
            return []
        return [
            self._run(
                f"{SEARCH}/{variant}-{short(point)}-seed{seed}", variant, seed, {**tune.overrides, **point}
            )
            for point in grid(tune.grid)
            for seed in tune.seeds
        ]

    def final_keys(self, variant: str) -> list[str]:
        """What of an arm is reported: a key for each seed, or for each point that a sampler draws."""
        if self.sampled:
            assert self.config.sweep is not None and self.config.sweep.trials is not None
            return [f"{RUNS}/{variant}-t{number:03d}" for number in range(self.config.sweep.trials)]
        return [f"{RUNS}/{variant}-seed{seed}" for seed in self.config.seeds]

    def final_runs(self, variant: str, settings: Mapping[str, Any]) -> list[PlannedRun]:
        """The arm's runs with the settings that it chose, one a seed."""
        keys = zip(self.final_keys(variant), self.config.seeds, strict=True)
        return [self._run(key, variant, seed, settings) for key, seed in keys]

    def keys(self) -> list[str]:
        """Keys of all that a board of this study may hold, what waits for a choice included."""
        return [
            key
            for name in self.variants
            for key in (*(run.key for run in self.trial_runs(name)), *self.final_keys(name))
        ]

    def first_runs(self) -> list[PlannedRun]:
        """What can be begun at once, interleaved so that all arms come on evenly."""
        if self.sampled:
            return []
        names = self.gated or list(self.variants)
        each = [self.trial_runs(name) if self.config.tune else self.final_runs(name, {}) for name in names]
        return [run for rank in itertools.zip_longest(*each) for run in rank if run is not None]

    def size(self) -> int:
        """Number of runs, those included that wait for a choice."""
        return len(self.keys()) * (len(self.config.seeds) if self.sampled else 1)

    def _run(self, key: str, variant: str, seed: int, settings: Mapping[str, Any]) -> PlannedRun:
        known = (key, json.dumps(settings, sort_keys=True))
        if known not in self._runs:
            self._runs[known] = PlannedRun(
                key=key,
                variant=variant,
                seed=seed,
                settings=dict(settings),
                fingerprint=fingerprint(self.recipe(variant, seed, settings)),
            )
        return self._runs[known]


def fingerprint(recipe: Recipe) -> str:
    """What tells a run from another one of the same name."""
    return recipe_fingerprint(resolved_recipe(recipe))


def grid(values: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination, the last key varying fastest."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _variants(study: Study) -> Iterator[Variant]:
    config = study.config
    for arm in config.arms:
        given = ArmConfig(recipe=arm) if isinstance(arm, str) else arm
        file = _recipe_file(study.file, given.recipe)
        shared = merge_overrides(config.overrides, given.overrides)
        name = given.name or load_recipe(file, merge_overrides(shared, study.overrides)).name
        for point in _sweep_points(config):
            yield Variant(
                name=f"{name}-{short(point)}" if point else name,
                file=file,
                overrides=merge_overrides(shared, point),
            )


def _check_points(section: str, file: Path, points: Iterable[Mapping[str, Any]]) -> None:
    """Each point has a name of its own, or one would be taken for the other."""
    named: dict[str, Mapping[str, Any]] = {}
    for point in points:
        other = named.setdefault(short(point), point)
        if other is not point:
            both = " and ".join(
                ", ".join(f"{key} {show(value)}" for key, value in one.items()) for one in (other, point)
            )
            raise UserError(
                f"{file}: {section}: {both} would both be named {short(point)!r}; give each value once, and numbers "
                "that differ in their first 6 digits"
            )


def _sweep_points(config: StudyConfig) -> Iterator[dict[str, Any]]:
    if config.sweep is None or config.sweep.sampler != "grid":
        yield {}
        return
    lists = {key: values for key, values in config.sweep.keys.items() if isinstance(values, list)}
    yield from grid(lists)


def _recipe_file(study: Path, recipe: str) -> Path:
    beside = study.parent / recipe
    if beside.exists() or beside.with_name(f"{beside.name}.yaml").exists():
        return find_recipe(beside, shipped=False)
    try:
        return find_recipe(recipe)
    except UserError as error:
        raise UserError(f"{study}: arms: {error}") from None
