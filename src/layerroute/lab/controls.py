"""Which of the controls that a routing claim needs are there, told from what the arms are, not from their names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerroute.lab.arms import Arm, Kind
from layerroute.lab.fairness import PARAMETER_TOLERANCE, SAME_COST, relative, unequal_cost
from layerroute.lab.format import count, percent

RATE_TOLERANCE = 0.02
CLAIM = "dynamic"


@dataclass(frozen=True, kw_only=True)
class ControlCheck:
    """One arm that the claim needs. ``arms`` is empty where it is missing; ``detail`` says why, or how it matches."""

    name: str
    refutes: str
    arms: tuple[str, ...]
    detail: str

    @property
    def missing(self) -> bool:
        """Whether no completed arm plays this part."""
        return not self.arms


def rate_of(arm: Arm) -> float | None:
    """Mean share of tokens on the expensive path, over sites and completed seeds."""
    return arm.mean("routing", "mean_rate")


def check_controls(arms: Sequence[Arm], subject: Arm | None) -> list[ControlCheck]:
    """The list of METHODS for attention routing, each with the arms that play the part.

    Parameters count as equal within 1 %, executed forward FLOPs per token within half a point of share, rates within
    2 percentage points of those of ``subject``, the dynamic arm that the claim is about. Only arms with a completed
    run count. Without a subject nothing can be equal to it: the matched controls are then missing.
    """
    return [
        _kinds(arms, "all-softmax", "that linear layers cost quality at all", {Kind.ALL_SOFTMAX}),
        _kinds(arms, "all-GDN", "that softmax attention is needed at all", {Kind.ALL_GDN}),
        _kinds(
            arms,
            "static",
            "that routing is needed to mix the two",
            {Kind.STATIC},
            lambda arm: _ratio(arm) or "",
        ),
        _matched(
            arms,
            subject,
            "static at equal parameters",
            "that more parameters explain it",
            lambda arm: arm.parameters,
            lambda arm, offset: abs(offset) <= PARAMETER_TOLERANCE,
            PARAMETER_TOLERANCE,
            "parameters",
        ),
        _matched(
            arms,
            subject,
            "static at equal FLOPs",
            "that more compute explains it",
            lambda arm: arm.executed,
            lambda arm, _: subject is not None and not unequal_cost(subject, arm),
            SAME_COST,
            "executed FLOPs per token",
        ),
        _kinds(arms, CLAIM, "(the claim itself)", {Kind.DYNAMIC}),
        _same_rate(
            arms, subject, "random at the same rate", "that any sparse mixture does as well", Kind.RANDOM
        ),
        _same_rate(
            arms,
            subject,
            "periodic at the same rate",
            "that evenly spread softmax does as well",
            Kind.PERIODIC,
        ),
    ]


def missing_controls(checks: Sequence[ControlCheck]) -> list[str]:
    """Names of the controls that are not there; the dynamic arm itself is none."""
    return [check.name for check in checks if check.missing and check.name != CLAIM]


def _ratio(arm: Arm) -> str | None:
    pattern = arm.layer_pattern
    linear = sum(layer == "gdn" for layer in pattern)
    return f"{arm.label}: {linear} GDN to {len(pattern) - linear} softmax layers" if pattern else None


def _kinds(
    arms: Sequence[Arm],
    name: str,
    refutes: str,
    kinds: set[Kind],
    describe: Callable[[Arm], str] | None = None,
) -> ControlCheck:
    candidates = [arm for arm in arms if arm.kind in kinds]
    found = [arm for arm in candidates if arm.completed]
    if found:
        detail = "; ".join(filter(None, map(describe, found))) if describe else ""
    else:
        detail = _unfinished(candidates) or "no such arm"
    return ControlCheck(name=name, refutes=refutes, arms=tuple(arm.label for arm in found), detail=detail)


def _matched(
    arms: Sequence[Arm],
    subject: Arm | None,
    name: str,
    refutes: str,
    quantity: Callable[[Arm], float | None],
    fits: Callable[[Arm, float], bool],
    tolerance: float,
    unit: str,
) -> ControlCheck:
    candidates = [arm for arm in arms if arm.kind in (Kind.STATIC, Kind.STATIC_CONTROL)]
    reference = None if subject is None else quantity(subject)
    if subject is None or reference is None:
        return ControlCheck(name=name, refutes=refutes, arms=(), detail="no completed dynamic arm to match")
    offsets = [(arm, relative(quantity(arm), reference)) for arm in candidates if arm.completed]
    known = [(arm, offset) for arm, offset in offsets if offset is not None]
    found = [(arm, offset) for arm, offset in known if fits(arm, offset)]
    if found:
        detail = "; ".join(f"{arm.label}: {_offset(offset)} {unit}" for arm, offset in found)
    elif known:
        arm, offset = min(known, key=lambda pair: abs(pair[1]))
        detail = (
            f"nearest is {arm.label}: {count(quantity(arm))} {unit}, {_offset(offset)} against "
            f"{subject.label} (at most {percent(tolerance, 1)} apart would count)"
        )
    else:
        detail = _unfinished(candidates) or "no static arm"
    return ControlCheck(name=name, refutes=refutes, arms=tuple(arm.label for arm, _ in found), detail=detail)


def _same_rate(arms: Sequence[Arm], subject: Arm | None, name: str, refutes: str, kind: Kind) -> ControlCheck:
    candidates = [arm for arm in arms if arm.kind is kind]
    reference = None if subject is None else rate_of(subject)
    if subject is None or reference is None:
        return ControlCheck(name=name, refutes=refutes, arms=(), detail="no completed dynamic arm to match")
    known = [(arm, rate) for arm in candidates if (rate := rate_of(arm)) is not None]
    found = [(arm, rate) for arm, rate in known if abs(rate - reference) <= RATE_TOLERANCE]
    if found:
        detail = "; ".join(
            f"{arm.label}: rate {percent(rate)} against {percent(reference)}" for arm, rate in found
        )
    elif known:
        arm, rate = min(known, key=lambda pair: abs(pair[1] - reference))
        detail = (
            f"nearest is {arm.label}: rate {percent(rate)}, {subject.label} has {percent(reference)} (at "
            f"most {100 * RATE_TOLERANCE:.0f} points apart would count)"
        )
    else:
        detail = _unfinished(candidates) or "no such arm"
    return ControlCheck(name=name, refutes=refutes, arms=tuple(arm.label for arm, _ in found), detail=detail)


def _unfinished(candidates: Sequence[Arm]) -> str:
    labels = [f"{arm.label} ({arm.example.status})" for arm in candidates if not arm.completed]
    return f"only runs that did not complete: {', '.join(labels)}" if labels else ""


def _offset(offset: float) -> str:
    sign = "+" if offset >= 0 else "−"
    return f"{sign}{100 * abs(offset):.1f}%"
