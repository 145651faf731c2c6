"""What an arm of layer skipping is, and what it costs: told from its records, never from its name."""

from layerroute.lab.arms import Arm, Kind

FULL, STOCHASTIC, ROUTED = Kind("full depth"), Kind("stochastic depth"), Kind("routed", learned=True)
EXIT, STATIC, PERIODIC, RANDOM = (
    Kind(name, control=True) for name in ("early exit", "static prune", "periodic", "random")
)
KINDS = (FULL, STOCHASTIC, ROUTED, EXIT, STATIC, PERIODIC, RANDOM)
_BY_CONTROL = {"stochastic": STOCHASTIC, "periodic": PERIODIC, "random": RANDOM}
_BY_START = {
    "static_influence": STATIC,
    "static_greedy": STATIC,
    "random": RANDOM,
    "periodic": PERIODIC,
    "early_exit": EXIT,
}


def kind_of(arm: Arm) -> Kind:
    """What an arm is, by its router and not by its name."""
    run = arm.example
    control = run.value("routing", "control") or run.value("recipe", "skip", "routing", "control")
    if control == "static":
        left_out = skipped(arm)
        if left_out is None:  # no run has completed: what was asked for
            left_out = 1.0 - float(run.value("recipe", "skip", "routing", "rate") or 0.0)
        return FULL if run.value("recipe", "start", "method") == "fresh" and not left_out else STATIC
    if control:
        return _BY_CONTROL.get(str(control), Kind(str(control)))
    return _BY_START.get(str(run.value("recipe", "start", "arm")), ROUTED)


def skipped(arm: Arm) -> float | None:
    """Share of routed compute that was skipped at evaluation, mean over completed seeds."""
    return arm.mean("routing", "skipped")
