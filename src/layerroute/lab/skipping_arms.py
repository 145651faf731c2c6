"""What an arm of layer skipping is, and what it costs: told from its records, never from its name."""

from layerroute.lab.arms import Arm

ROUTED, FULL, STATIC = "routed", "full depth", "static prune"

_KINDS = {
    "static_influence": STATIC,
    "static_greedy": STATIC,
    "random": "random",
    "periodic": "periodic",
    "early_exit": "early exit",
}
RATE = "skip.routing.rate"
"""The dotted key in which arms of one method at several budgets differ."""
ORDER = (FULL, "stochastic depth", ROUTED, "early exit", STATIC, "periodic", "random")
"""Kinds in the order of tables."""


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
        return STATIC
    if control:
        return str(control)
    return _KINDS.get(str(run.value("recipe", "start", "arm")), ROUTED)


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
