"""What an arm of attention routing is, told from its layer pattern and its routing, never from its name."""

from layerroute.lab.arms import OTHER, Arm, Kind

ALL_SOFTMAX, ALL_GDN, STATIC = Kind("all-softmax"), Kind("all-GDN"), Kind("static")
DYNAMIC = Kind("dynamic", learned=True)
RANDOM, PERIODIC, STATIC_CONTROL, STOCHASTIC = (
    Kind(f"{name} control", control=True) for name in ("random", "periodic", "static", "stochastic")
)
WINDOW, ORACLE = Kind("static with a window"), Kind("oracle", control=True)
KINDS = (
    *(STATIC, DYNAMIC, RANDOM, PERIODIC, STATIC_CONTROL, STOCHASTIC),
    *(ORACLE, WINDOW, ALL_GDN, ALL_SOFTMAX, OTHER),
)
_CONTROLS = {
    "random": RANDOM,
    "periodic": PERIODIC,
    "static": STATIC_CONTROL,
    "stochastic": STOCHASTIC,
    "oracle": ORACLE,
}
_UNROUTED = {("gdn",): ALL_GDN, ("softmax",): ALL_SOFTMAX, ("gdn", "softmax"): STATIC}


def kind_of(arm: Arm) -> Kind:
    """What the arm is."""
    pattern = sorted(set(arm.layer_pattern))
    control = arm.example.value("routing", "control")
    control = control or arm.example.value("recipe", "model", "routing", "control")
    if "routed" in pattern or arm.sites:
        return _CONTROLS.get(str(control), Kind(f"{control} control", control=True)) if control else DYNAMIC
    return WINDOW if "window" in pattern else _UNROUTED.get(tuple(pattern), OTHER)
