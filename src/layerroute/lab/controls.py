"""Which of the controls that a routing claim needs are there, told from what the arms are, not from their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerroute.lab.arms import Arm
from layerroute.lab.fairness import RATE_TOLERANCE, relative, unequal_cost
from layerroute.lab.format import MISSING, count, listing, percent, signed_percent
from layerroute.lab.question import Control, Match
from layerroute.lab.table import Table, words
from layerroute.outcomes import SAME_COST


@dataclass(frozen=True, kw_only=True)
class ControlCheck:
    """One arm that the claim needs. ``arms`` is empty where it is missing; ``detail`` says why, or how it matches."""

    control: Control
    arms: tuple[str, ...]
    detail: str

    @property
    def missing(self) -> bool:
        """Whether no completed arm plays this part; the claim itself is no control."""
        return not self.arms and not self.control.claim


def rate_of(arm: Arm) -> float | None:
    """Mean share of tokens on the expensive path, over sites and completed seeds."""
    return arm.mean("routing", "mean_rate")


def equal_in(
    of: Callable[[Arm], float | None],
    unit: str,
    tolerance: float,
    fits: Callable[[Arm, Arm, float], bool] | None = None,
) -> Match:
    """A match of a quantity within a relative tolerance, or by the rule ``fits``."""
    return Match(
        of=of,
        gap=relative,
        fits=fits or (lambda subject, arm, gap: abs(gap) <= tolerance),
        found=lambda own, reference, gap: f"{signed_percent(gap)} {unit}",
        nearest=lambda own, subject, reference, gap: (
            f"{count(own)} {unit}, {signed_percent(gap)} against {subject.label} (at most {percent(tolerance)} apart "
            "would count)"
        ),
        no_arm="no static arm",
    )


EQUAL_PARAMETERS = equal_in(lambda arm: arm.parameters, "parameters", 0.01)
EQUAL_COST = equal_in(
    lambda arm: arm.executed,
    "executed FLOPs per token",
    SAME_COST,
    lambda subject, arm, gap: not unequal_cost(subject, arm),
)
SAME_RATE = Match(
    of=rate_of,
    gap=lambda own, reference: own - reference,
    fits=lambda subject, arm, gap: abs(gap) <= RATE_TOLERANCE,
    found=lambda own, reference, gap: f"rate {percent(own)} against {percent(reference)}",
    nearest=lambda own, subject, reference, gap: (
        f"rate {percent(own)}, {subject.label} has {percent(reference)} (at most {100 * RATE_TOLERANCE:.0f} points "
        "apart would count)"
    ),
)


def check_control(control: Control, arms: Sequence[Arm], subject: Arm | None) -> ControlCheck:
    """The completed arms that play the part of a control against ``subject``, the arm that the claim is about.

    Without a subject nothing can be equal to it: matched controls are then missing.
    """
    candidates = [arm for arm in arms if control.kinds is None or arm.kind in control.kinds]
    done = [arm for arm in candidates if arm.completed]
    match = control.match
    unfinished = [f"{arm.label} ({arm.example.status})" for arm in candidates if not arm.completed]
    none = f"only runs that did not complete: {', '.join(unfinished)}" if unfinished else ""
    if match is None:
        detail = "; ".join(filter(None, map(control.tell, done))) if done else none or "no such arm"
        return ControlCheck(control=control, arms=tuple(arm.label for arm in done), detail=detail)
    reference = None if subject is None else match.of(subject)
    if subject is None or reference is None:
        return ControlCheck(control=control, arms=(), detail="no completed dynamic arm to match")
    known = [
        (arm, own, gap)
        for arm in done
        if (own := match.of(arm)) is not None and (gap := match.gap(own, reference)) is not None
    ]
    found = [entry for entry in known if control.plays(subject, entry[0])]
    if found:
        detail = "; ".join(f"{arm.label}: {match.found(own, reference, gap)}" for arm, own, gap in found)
    elif known:
        arm, own, gap = min(known, key=lambda entry: abs(entry[2]))
        detail = f"nearest is {arm.label}: {match.nearest(own, subject, reference, gap)}"
    else:
        detail = none or match.no_arm
    return ControlCheck(control=control, arms=tuple(arm.label for arm, _, _ in found), detail=detail)


def controls_table(checks: Sequence[ControlCheck], subject: Arm | None) -> Table:
    """The controls that a routing claim needs, and whether they are there."""
    whose = f" for {subject.label}" if subject else ""
    return Table.of(
        "Table of controls",
        f"Controls{whose}: what each could refute, and which arm plays it",
        [
            words("Control", lambda check: check.control.name),
            words("Arms", lambda check: listing(check.arms) if check.arms else "MISSING"),
            words("Could show", lambda check: check.control.refutes),
            words("Detail", lambda check: check.detail or MISSING),
        ],
        checks,
    )
