"""Layer-skipping runs side by side: quality against compute really skipped, paired by text and by seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerroute.analysis.arms import Arm, group_arms
from layerroute.analysis.crossed import crossed_test
from layerroute.analysis.fairness import data_identity, machine
from layerroute.analysis.format import MISSING, listing, number, percent, plural, plus_minus, signed
from layerroute.analysis.runs import Run
from layerroute.analysis.statistics import minimal_detectable_effect
from layerroute.analysis.table import Cell, Column, Row, Table, text_cells
from layerroute.errors import UserError, nearest

CAPABILITY = "layer_skipping"
DRAWS = 10_000
SAME_SKIP = 0.02
"""Arms that skip within so much of each other are compared as equals."""
SAME_TIME = 0.05
"""Arms whose evaluation takes within so much of the same time are compared as equally fast."""

ROUTED, FULL = "routed", "full depth"
NEEDED = ("random", "periodic", "static prune")
"""Controls without which nothing can be said for routing."""

_KINDS = {
    "static_influence": "static prune",
    "static_greedy": "static prune",
    "random": "random",
    "periodic": "periodic",
    "early_exit": "early exit",
}
_ORDER = (FULL, "stochastic depth", ROUTED, "early exit", "static prune", "periodic", "random")


def kind_of(arm: Arm) -> str:
    """What an arm is, by its router and not by its name."""
    run = arm.example
    control = run.value("routing", "control") or run.value("recipe", "skip", "routing", "control")
    if control == "stochastic":
        return "stochastic depth"
    if control == "static":
        skipped = arm.mean("routing", "skipped")
        if run.value("recipe", "start", "method") == "fresh" and not skipped:
            return FULL
        return "static prune"
    if control:
        return str(control)
    return _KINDS.get(str(run.value("recipe", "start", "arm")), ROUTED)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much higher the routed arm's validation loss is than a rival's, in nats; negative: routing is better.

    Attributes:
        mean, low, high: mean and 95 % interval: with two or more seeds in common that of ``crossed_difference``, over
            seeds and windows of text; with one a bootstrap over windows, which says nothing of other seeds.
        seeds, windows: how many of each.
        detectable: the smallest true difference that would have been found with 80 % power.
    """

    mean: float
    low: float
    high: float
    seeds: int
    windows: int
    detectable: float | None = None

    @property
    def outcome(self) -> str:
        """``wins``, ``loses`` or ``cannot be told``, of the routed arm."""
        return "wins" if self.high < 0 else "loses" if self.low > 0 else "cannot be told"


def window_losses(arm: Arm) -> dict[int, NDArray[np.float64]]:
    """Losses by validation window of every completed run that has them."""
    found = {run.seed: run.value("validation", "window_losses") for run in arm.completed}
    return {seed: np.asarray(losses, dtype=np.float64) for seed, losses in found.items() if losses}


def paired_gap(subject: Arm, rival: Arm, *, draws: int = DRAWS) -> Gap | None:
    """Paired difference of two arms; None where they have no seed, or not the same windows, in common."""
    ours, theirs = window_losses(subject), window_losses(rival)
    seeds = sorted(set(ours) & set(theirs))
    if not seeds or len({len(x) for s in seeds for x in (ours[s], theirs[s])}) != 1:
        return None
    matrix = np.stack([ours[seed] - theirs[seed] for seed in seeds])
    count, windows = matrix.shape
    if count > 1 and windows > 1:
        found = crossed_test(matrix)
        mean, half = float(found.mean), float(found.half_width)
        return Gap(
            mean=mean,
            low=mean - half,
            high=mean + half,
            seeds=count,
            windows=windows,
            detectable=float(found.detectable),
        )
    generator = np.random.default_rng(0)
    values = matrix.mean(axis=0)
    means = values[generator.integers(windows, size=(draws, windows))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    spread = float(values.std(ddof=1)) if windows > 1 else 0.0
    return Gap(
        mean=float(values.mean()),
        low=float(low),
        high=float(high),
        seeds=count,
        windows=windows,
        detectable=minimal_detectable_effect(spread, windows),
    )


def skipped(arm: Arm) -> float | None:
    """Share of routed compute that was skipped at evaluation, mean over completed seeds."""
    return arm.mean("routing", "skipped")


def evaluation_seconds(arm: Arm) -> float | None:
    """Wall time of the last evaluation, which all arms spend on the same windows; mean over completed seeds."""
    return arm.mean("timing", "evaluation_seconds")


def executed(arm: Arm) -> float | None:
    """Forward FLOPs executed per token, as a share of the plain model's, mean over completed seeds."""
    done, base = arm.mean("flops", "executed_per_token"), arm.mean("flops", "base_per_token")
    return None if done is None or not base else done / base


@dataclass(frozen=True, eq=False, kw_only=True)
class SkippingComparison:
    """Arms of layer skipping.

    Attributes:
        arms: by kind.
        subject: the routed arm that the question is about, None where there is none.
        gaps: the subject against every other arm, by label.
        notes: what was told apart.
    """

    arms: tuple[Arm, ...]
    subject: Arm | None
    gaps: dict[str, Gap | None]
    notes: tuple[str, ...] = ()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables by short name."""
        return {"main": self._main(), "differences": self._differences(), "sites": self._sites()}

    @property
    def full(self) -> Arm | None:
        """The arm that never skips."""
        return next((arm for arm in self.arms if kind_of(arm) == FULL and arm.completed), None)

    def rivals(self) -> list[Arm]:
        """Arms that skip as much as the subject."""
        if self.subject is None or (own := skipped(self.subject)) is None:
            return []
        return [
            arm
            for arm in self.arms
            if arm is not self.subject
            and (share := skipped(arm)) is not None
            and share > 0
            and abs(share - own) <= SAME_SKIP
        ]

    def as_fast(self) -> list[Arm]:
        """Arms whose measured evaluation takes as long as the subject's, on the same machine."""
        if self.subject is None or (own := evaluation_seconds(self.subject)) is None:
            return []
        where = {machine(run) for run in self.subject.completed}
        return [
            arm
            for arm in self.arms
            if arm is not self.subject
            and (seconds := evaluation_seconds(arm)) is not None
            and {machine(run) for run in arm.completed} == where
            and abs(seconds / own - 1) <= SAME_TIME
        ]

    @property
    def missing(self) -> list[str]:
        """Controls at the subject's skip that are not there."""
        there = {kind_of(arm) for arm in self.rivals()}
        return [name for name in NEEDED if name not in there]

    @property
    def outcome(self) -> str | None:
        """``wins`` if the routed arm beats every control at its skip, ``loses`` if one beats it, else what is open."""
        found = [gap.outcome for arm in self.rivals() if (gap := self.gaps.get(arm.label)) is not None]
        if not found or self.missing:
            return None
        return "loses" if "loses" in found else "cannot be told" if "cannot be told" in found else "wins"

    @property
    def verdict(self) -> str:
        """What can be said for the routed arm against each control at the same skip, wins and losses alike."""
        if self.subject is None:
            return "There is no completed routed arm, so nothing is said about routing."
        own = skipped(self.subject)
        parts = []
        for arm in self.rivals():
            gap = self.gaps.get(arm.label)
            if gap is None:
                parts.append(f"cannot be paired with {arm.label}")
                continue
            word = {"wins": "beats", "loses": "loses to"}.get(gap.outcome, "cannot be told from")
            interval = f"{signed(gap.mean)} nats, 95% {signed(gap.low)} to {signed(gap.high)}"
            if gap.outcome == "cannot be told" and gap.detectable is not None:
                interval += f"; a difference below about {number(gap.detectable)} would go unseen"
            parts.append(f"{word} {arm.label} ({interval})")
        text = f"{self.subject.label}, which skips {percent(own)} of routed compute, "
        text += (listing(parts) if parts else "has no control at the same skip to be held against") + "."
        if any(gap and gap.seeds == 1 for gap in self.gaps.values()):
            text += " One seed: the intervals are over text, not over seeds."
        if self.missing:
            text += f" Missing at this skip: {listing(self.missing)}; nothing can be credited to routing yet."
        unfinished = [
            f"{arm.label} seed {run.seed} ({run.status})" for arm in self.arms for run in arm.unfinished
        ]
        if unfinished:
            text += f" Not completed, and in no number: {listing(unfinished)}."
        if not all(arm.causal for arm in self.arms):
            named = [arm.label for arm in self.arms if not arm.causal]
            text += f" Decisions of {listing(named)} are not causal: they may see later tokens."
        return text

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data, for ``--json``."""
        return {
            "capability": CAPABILITY,
            "subject": self.subject.label if self.subject else None,
            "verdict": self.verdict,
            "controls_missing": self.missing,
            "arms": [
                {
                    "arm": arm.label,
                    "kind": kind_of(arm),
                    "seeds": list(arm.seeds),
                    "skipped": skipped(arm),
                    "executed": executed(arm),
                    "validation_loss": arm.loss,
                    "subject_minus_this": None if (g := self.gaps.get(arm.label)) is None else vars(g),
                    "unfinished": [
                        {"run": run.record["run"], "status": run.status} for run in arm.unfinished
                    ],
                }
                for arm in self.arms
            ],
            "notes": list(self.notes),
            "tables": {name: table.to_dict() for name, table in self.tables.items()},
        }

    def _main(self) -> Table:
        columns = (
            Column(label="Arm"),
            Column(label="Kind"),
            Column(label="Seeds", numeric=True),
            Column(label="Skipped", numeric=True),
            Column(label="Val loss ↓", numeric=True),
            Column(label="Above full", numeric=True),
            Column(label="Perplexity ↓", numeric=True),
            Column(label="Accuracy ↑", numeric=True),
            Column(label="FLOPs", numeric=True),
        )
        floor = self.full.mean("metrics", "validation_loss") if self.full else None
        rows = []
        for arm in self.arms:
            if not arm.completed:
                continue
            loss, share, flops = arm.mean("metrics", "validation_loss"), skipped(arm), executed(arm)
            above = None if floor is None or loss is None or arm is self.full else loss - floor
            perplexity = arm.mean("metrics", "validation_perplexity")
            accuracy = arm.mean("metrics", "validation_accuracy")
            estimate = arm.estimate("metrics", "validation_loss")
            half = None if estimate is None else estimate.half_width
            rows.append(
                Row(
                    cells=(
                        Cell(arm.label),
                        Cell(kind_of(arm)),
                        Cell(str(len(arm.completed)), len(arm.completed)),
                        Cell(percent(share), share),
                        Cell(plus_minus(loss, half), loss),
                        Cell(MISSING if above is None else signed(above), above),
                        Cell(number(perplexity, 2), perplexity),
                        Cell(percent(accuracy), accuracy),
                        Cell(percent(flops), flops),
                    )
                )
            )
        for arm in self.arms:
            for run in arm.unfinished:
                cells = [f"{arm.label}, seed {run.seed}", *[MISSING] * (len(columns) - 2), run.status.upper()]
                rows.append(Row(cells=text_cells(cells), kind="unfinished"))
        return Table(
            name="Table 1",
            title="Validation cross-entropy in nats per token, and what was skipped for it",
            columns=columns,
            rows=tuple(rows),
            notes=(
                "Skipped: share of the routed compute not spent, from hard decisions in inference mode on the "
                "validation text. FLOPs: executed per token, counted by PyTorch, against the plain model.",
            ),
        )

    def _differences(self) -> Table:
        columns = (
            Column(label="Against"),
            Column(label="Its skip", numeric=True),
            Column(label="Δ val loss", numeric=True),
            Column(label="95% interval", numeric=True),
            Column(label="Seeds × windows", numeric=True),
            Column(label="Detectable", numeric=True),
            Column(label="Its time", numeric=True),
            Column(label="Equal in"),
            Column(label="Routing"),
        )
        equal, fast = ({arm.label for arm in arms} for arms in (self.rivals(), self.as_fast()))
        own = None if self.subject is None else evaluation_seconds(self.subject)
        rows = []
        for arm in self.arms:
            gap = self.gaps.get(arm.label)
            if arm is self.subject or gap is None:
                continue
            share = skipped(arm)
            seconds = evaluation_seconds(arm)
            time = None if seconds is None or not own else seconds / own
            alike = [word for word, arms in (("skip", equal), ("time", fast)) if arm.label in arms]
            rows.append(
                Row(
                    cells=(
                        Cell(arm.label),
                        Cell(percent(share), share),
                        Cell(signed(gap.mean), gap.mean),
                        Cell(f"{signed(gap.low)} to {signed(gap.high)}"),
                        Cell(f"{gap.seeds} × {gap.windows}"),
                        Cell(number(gap.detectable), gap.detectable),
                        Cell(MISSING if time is None else f"{number(time, 2)}×", time),
                        Cell(listing(alike) or "neither"),
                        Cell(gap.outcome if alike else f"{gap.outcome}, unequal"),
                    )
                )
            )
        name = self.subject.label if self.subject else "routed"
        return Table(
            name="Table 2",
            title=f"Validation loss of {name} less that of each other arm",
            columns=columns,
            rows=tuple(rows),
            notes=(
                "Negative: routing is better. Paired: the same windows of text, the same seeds; the interval is over "
                "both (a bootstrap over windows alone where there is one seed). Detectable: the smallest true "
                "difference that would have been found with 80% power. Time: wall time of the last evaluation, against "
                "the routed arm's; other work on the machine counts in it. Equal: skip within 2 points, time "
                "within 5%.",
            ),
        )

    def _sites(self) -> Table:
        shown = [arm for arm in self.arms if arm.completed and arm.sites]
        names = list(dict.fromkeys(site for arm in shown for site in arm.sites))
        columns = (Column(label="Site"), *(Column(label=arm.label, numeric=True) for arm in shown))
        rows = []
        for site in names:
            rates = [arm.mean("routing", "rate", site) for arm in shown]
            cells = [
                Cell(MISSING if rate is None else percent(1 - rate, 0), None if rate is None else 1 - rate)
                for rate in rates
            ]
            rows.append(Row(cells=(Cell(site), *cells)))
        return Table(
            name="Table 3", title="Share of tokens that skip each site", columns=columns, rows=tuple(rows)
        )


def compare_skipping(
    runs: Sequence[Run], *, subject: str | None = None, allow_different_data: bool = False
) -> SkippingComparison:
    """Compare the arms of layer-skipping runs.

    Args:
        runs: failed and unfinished ones are shown and never averaged in.
        subject: label of the routed arm that the question is about. Default: ``token``, else the first routed arm.
        allow_different_data: compare runs of different data nevertheless; they are then not paired.

    Raises:
        UserError: no run, an unknown subject, or different data.
    """
    if not runs:
        raise UserError("there is no run to compare: give run directories as `layerroute train` wrote them.")
    identities = {data_identity(run) for run in runs if run.value("data", "fingerprint") is not None}
    if len(identities) > 1 and not allow_different_data:
        raise UserError(
            f"the runs saw {plural(len(identities), 'data set')}, so their losses cannot be compared. Give runs of "
            "one, or --allow-different-data to see the tables nevertheless."
        )
    arms, notes = group_arms(runs)
    arms = tuple(
        sorted(arms, key=lambda arm: (_ORDER.index(k) if (k := kind_of(arm)) in _ORDER else 9, arm.label))
    )
    routed = [arm for arm in arms if kind_of(arm) == ROUTED and arm.completed]
    chosen = next((arm for arm in routed if arm.label == (subject or "token")), None)
    if subject is not None and chosen is None:
        raise UserError(
            f"there is no completed routed arm {subject!r}.{nearest(subject, [arm.label for arm in routed])}"
        )
    chosen = chosen or (routed[0] if routed else None)
    others = [arm.label for arm in routed if arm is not chosen]
    if others and chosen is not None:
        notes += (f"The question is asked of {chosen.label}; {listing(others)} shown as variants.",)
    gaps: dict[str, Gap | None] = {}
    if chosen is not None and len(identities) <= 1:
        gaps = {arm.label: paired_gap(chosen, arm) for arm in arms if arm is not chosen}
    return SkippingComparison(arms=arms, subject=chosen, gaps=gaps, notes=notes)
