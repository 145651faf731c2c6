"""Do routers of different seeds send the same tokens the same way? Agreement beyond what their rates would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from layerroute.lab.arms import Arm
from layerroute.lab.format import count, number, percent
from layerroute.lab.runs import TokenRoutes
from layerroute.lab.table import Table, figures, plain, words


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two or more runs of one arm agree on the same tokens, over all sites.

    Attributes:
        pairs: pairs of seeds compared.
        decisions: tokens × sites that each pair shares.
        same: share of decisions that are equal, mean over pairs.
        expected: share that would be equal if each run kept its rate at each site and chose tokens at random.
        kappa: (same − expected) / (1 − expected), Cohen's kappa (1960): 0 is chance, 1 is full agreement. None where
            chance alone agrees on everything.
    """

    arm: str
    pairs: int
    decisions: int
    same: float
    expected: float

    @property
    def kappa(self) -> float | None:
        return None if self.expected >= 1.0 else (self.same - self.expected) / (1 - self.expected)


def seed_agreement(arm: Arm) -> Agreement | None:
    """Agreement between the completed runs of ``arm``; None unless two of them stored decisions on the same tokens."""
    routes = [run.token_routes for run in arm.completed]
    pairs = [
        (_choices(one), _choices(other))
        for one, other in combinations([found for found in routes if found is not None], 2)
        if one.sites == other.sites and [s[0] for s in one.sentences] == [s[0] for s in other.sentences]
    ]
    pairs = [(one, other) for one, other in pairs if one.size]
    if not pairs:
        return None
    same = [float((one == other).mean()) for one, other in pairs]
    chance = []
    for one, other in pairs:
        a, b = one.mean(axis=0), other.mean(axis=0)
        chance.append(float((a * b + (1 - a) * (1 - b)).mean()))
    return Agreement(
        arm=arm.label,
        pairs=len(pairs),
        decisions=pairs[0][0].size,
        same=fmean(same),
        expected=fmean(chance),
    )


def agreement_table(arms: Sequence[Arm]) -> Table | None:
    """One row an arm that routes by a learned router; None where no arm has two comparable runs."""
    found = [agreement for arm in arms if arm.kind.learned and (agreement := seed_agreement(arm))]
    if not found:
        return None
    return Table.of(
        "Table of agreement",
        "Decisions of different seeds on the same tokens",
        [
            words("Arm", lambda one: one.arm),
            figures("Pairs of seeds", lambda one: one.pairs, plain),
            figures("Decisions a pair", lambda one: one.decisions, count),
            figures("Same path", lambda one: one.same, percent),
            figures("By chance", lambda one: one.expected, percent),
            figures("Kappa", lambda one: one.kappa, lambda kappa: number(kappa, 2)),
        ],
        found,
        notes=[
            "Decisions: tokens × sites. By chance: if each run kept its rate at each site and chose tokens at random. "
            "Kappa is the agreement beyond chance: 0 none, 1 full."
        ],
    )


def _choices(routes: TokenRoutes) -> np.ndarray:
    """Whether each decision is for the expensive path, (tokens, sites)."""
    rows = [row for _, choices, _ in routes.sentences for row in choices]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(routes.sites)) == len(routes.paths) - 1
