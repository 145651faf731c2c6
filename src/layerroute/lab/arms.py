"""Runs grouped into arms: one configuration, its seeds, and what kind of model it is by its content."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from layerroute.errors import UserError, nearest
from layerroute.lab.format import plural
from layerroute.lab.runs import Run
from layerroute.lab.statistics import Estimate, by_seed, t_interval

# Settings that may differ between the runs of one arm: they change neither the model nor how it is trained.
_IRRELEVANT = {
    "seed",
    "name",
    "data.cache_dir",
    "train.report_to",
    "train.keep_checkpoints",
    "train.save_every",
}


# Settings that say most about what a run is: they are named first where runs must be told apart.
_TELLING = ("train.max_steps", "train.learning_rate", "model.layer_pattern", "objective.balance_weight")


@dataclass(frozen=True)
class Kind:
    """What an arm is, told from its records and never from its name.

    ``learned``: it routes by a trained router. ``control``: it routes, or cuts, in a way that cannot be clever.
    """

    name: str
    learned: bool = False
    control: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def routed(self) -> bool:
        """Whether the model has routed sites, with a learned router or a control."""
        return self.learned or self.control


OTHER = Kind("other")
_BLIND = {"periodic", "static", "stochastic"}


@dataclass(frozen=True, eq=False)
class Arm:
    """All runs of one configuration. ``label`` is the arm's name, made unique where two recipes share one."""

    label: str
    runs: tuple[Run, ...]
    kind_of: Callable[["Arm"], Kind] = lambda arm: OTHER

    @cached_property
    def kind(self) -> Kind:
        """What the arm is, as the question that it is part of tells it."""
        return self.kind_of(self)

    @property
    def completed(self) -> tuple[Run, ...]:
        """Runs that came to their end, by seed: the only ones in any mean."""
        return tuple(sorted((run for run in self.runs if run.completed), key=lambda run: run.seed))

    @property
    def unfinished(self) -> tuple[Run, ...]:
        """Failed, interrupted and running runs, by seed."""
        return tuple(sorted((run for run in self.runs if not run.completed), key=lambda run: run.seed))

    @property
    def example(self) -> Run:
        """The run that stands for the arm where all are alike: the first completed one, else the first."""
        return (self.completed or self.unfinished)[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the completed runs."""
        return tuple(run.seed for run in self.completed)

    def on(self, seeds: Iterable[int]) -> "Arm":
        """The arm with its runs of these seeds alone."""
        kept = set(seeds)
        return replace(self, runs=tuple(run for run in self.runs if run.seed in kept))

    def by_seed(self, *keys: str) -> dict[int, float]:
        """The record's number at ``keys`` for every completed run that has one."""
        found = {run.seed: run.value(*keys) for run in self.completed}
        return {seed: float(value) for seed, value in found.items() if isinstance(value, int | float)}

    def estimate(self, *keys: str) -> Estimate | None:
        """Mean and 95 % t interval over completed seeds of the number at ``keys``."""
        return t_interval(list(self.by_seed(*keys).values()))

    def mean(self, *keys: str) -> float | None:
        """Mean over completed seeds of the number at ``keys``."""
        found = self.estimate(*keys)
        return None if found is None else found.mean

    @property
    def loss(self) -> dict[int, float]:
        """Final validation loss by seed."""
        return self.by_seed("metrics", "validation_loss")

    @property
    def window_losses(self) -> dict[int, list[float]]:
        """Loss on every validation window by seed, for completed runs whose record has them."""
        found = {run.seed: run.value("validation", "window_losses") for run in self.completed}
        return {
            seed: losses
            for seed, losses in found.items()
            if isinstance(losses, list) and losses and None not in losses
        }

    @property
    def layer_pattern(self) -> tuple[str, ...]:
        """``gdn``, ``softmax`` or ``routed`` for each layer; empty where the recipe gives none."""
        pattern = self.example.value("recipe", "model", "layer_pattern")
        return tuple(map(str, pattern)) if isinstance(pattern, list | tuple) else ()

    @property
    def sites(self) -> tuple[str, ...]:
        """Routed sites in the order of the model."""
        found = self.example.value("routing", "sites")
        return tuple(found) if found else ()

    @property
    def paths(self) -> tuple[str, str]:
        """Names of the cheap and the expensive path."""
        found = self.example.value("routing", "paths") or ("gdn", "softmax")
        return str(found[0]), str(self.example.value("routing", "expensive_path") or found[-1])

    @property
    def flops(self) -> float | None:
        """Forward FLOPs per token that the arm's model needs: at its measured rate if it routes."""
        routed = self.mean("flops", "routed_per_token") if self.kind.routed else None
        return self.mean("flops", "forward_per_token") if routed is None else routed

    @property
    def executed(self) -> float | None:
        """Forward FLOPs per token that were executed at inference; None where they were not counted.

        With ``full_context`` routing saves less than the rate says (all tokens write K/V and state), and where masked
        execution was chosen it saves nothing: equal cost means equal in what was executed.
        """
        return self.mean("flops", "executed_per_token")

    @property
    def executed_share(self) -> float | None:
        """The same as a share of the plain model's, where the records have it."""
        done, base = self.executed, self.mean("flops", "base_per_token")
        return None if done is None or not base else done / base

    @property
    def parameters(self) -> float | None:
        """Total number of parameters."""
        return self.mean("parameters", "total")

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate: the recipe's, or else the highest of the training curve."""
        stated = self.example.value("recipe", "train", "learning_rate")
        if isinstance(stated, int | float):
            return float(stated)
        curve = self.example.curve("train", "learning_rate")
        return None if curve.empty else float(curve.max())

    @property
    def told(self) -> Run | None:
        """The first completed run that tells the decisions on single tokens."""
        runs = ((run, run.token_routes) for run in self.completed)
        return next((run for run, routes in runs if routes and routes.sentences and routes.sites), None)

    @property
    def causal(self) -> bool:
        """False if the record says that decisions may depend on later tokens.

        Records of earlier versions say so of controls that look at no token.
        """
        return all(
            run.value("routing", "causal") is not False or run.value("routing", "control") in _BLIND
            for run in self.runs
        )


def arm_named(arms: Sequence[Arm], label: str, what: str = "arm") -> Arm:
    """The arm of this label.

    Raises:
        UserError: there is none.
    """
    found = next((arm for arm in arms if arm.label == label), None)
    if found is None:
        near = nearest(label, [arm.label for arm in arms])
        raise UserError(f"there is no {what} {label!r} among the runs.{near}")
    return found


def group_arms(
    runs: Sequence[Run], kind_of: Callable[[Arm], Kind] = lambda arm: OTHER
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Group ``runs`` into arms, and say in notes what was told apart.

    Runs of one arm name whose recipes differ (beyond the seed) are different configurations: they are shown
    apart, named by the settings that differ, and never averaged together.

    Raises:
        UserError: two completed runs of one arm have the same seed and recipe.
    """
    named: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        named.setdefault(run.arm, {}).setdefault(_configuration(run), []).append(run)
    arms: list[Arm] = []
    notes: list[str] = []
    for name, groups in named.items():
        labels = _labels(name, [json.loads(key) for key in groups])
        if len(groups) > 1:
            notes.append(
                f"Runs named {name} have {plural(len(groups), 'recipe')}; they are different arms and shown "
                f"apart, as {', '.join(labels)}."
            )
        arms += [
            Arm(label, tuple(members), kind_of)
            for label, members in zip(labels, groups.values(), strict=True)
        ]
    for arm in arms:
        _check_seeds(arm)
    return tuple(arms), tuple(notes)


def _check_seeds(arm: Arm) -> None:
    seen: dict[int, Run] = {}
    for run in arm.completed:
        if run.seed in seen:
            raise UserError(
                f"two completed runs of arm {arm.label} have seed {run.seed} and the same recipe: "
                f"{seen[run.seed].path.parent} and {run.path.parent}. A seed counts once: name one of them."
            )
        seen[run.seed] = run


def _configuration(run: Run, without: Collection[str] = ()) -> str:
    flat = dict(_flatten(run.value("recipe") or {}))
    left_out = {*_IRRELEVANT, *without}
    # A key that came to be after a run was recorded, and says nothing, does not make it another arm.
    said = {key: value for key, value in flat.items() if value is not None and key not in left_out}
    return json.dumps(said, sort_keys=True, default=str)


def alike_besides(arms: Sequence[Arm], keys: Collection[str]) -> list[list[Arm]]:
    """``arms`` in groups whose recipes are equal besides these dotted keys: one method at several rates, say."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(_configuration(arm.example, keys), []).append(arm)
    return list(groups.values())


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _labels(name: str, configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    """``name`` with the fewest settings that tell the configurations apart, at most two; else with numbers."""
    if len(configurations) == 1:
        return [name]
    keys = sorted({key for configuration in configurations for key in configuration})
    differing = [key for key in keys if len({_shown(c, key) for c in configurations}) > 1]
    differing.sort(key=lambda key: (_TELLING.index(key) if key in _TELLING else len(_TELLING), key))
    chosen: tuple[str, ...] = next(
        (
            some
            for size in (1, 2)
            for some in combinations(differing, size)
            if len({tuple(_shown(c, key) for key in some) for c in configurations}) == len(configurations)
        ),
        (),
    )
    if not chosen:
        return [f"{name} #{index + 1}" for index in range(len(configurations))]
    settings = [
        ", ".join(f"{key.rpartition('.')[2]} {_shown(c, key)}" for key in chosen) for c in configurations
    ]
    return [f"{name} ({text})" for text in settings]


def _shown(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "/".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def mean_gap(one: Arm, other: Arm, *keys: str) -> float | None:
    """Mean of ``one`` less ``other`` of the record's number at ``keys``, over the seeds of both; None without any."""
    return getattr(by_seed(one.by_seed(*keys), other.by_seed(*keys)), "mean", None)


def on_common_seeds(*arms: Arm) -> tuple[Arm, ...]:
    """Arms with the runs that can be paired; as they are where no seed is common to all."""
    common = set(arms[0].seeds).intersection(*(arm.seeds for arm in arms[1:]))
    return tuple(arm.on(common) if common and common != set(arm.seeds) else arm for arm in arms)
