"""What an architecture diagram shows, from the record alone: layers, the shares that routing gave them, FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from layerroute.capabilities.attention.routing import site_routing
from layerroute.lab.arms import Arm

MOST_SINGLE_LAYERS = 8
COMPLEXITY = {"gdn": "O(n)", "softmax": "O(n²)", "window": "O(n)"}


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Layers of one kind that are drawn as one box.

    ``share`` is the mean share of tokens on the expensive path, ``low`` and ``high`` its range over the segment's
    sites; None for layers that are not routed, or whose rate no completed run gives. ``flops`` is what one layer's
    mixer (or block) costs a token, by path, as far as the record says.
    """

    kind: str
    layers: tuple[int, ...]
    share: float | None
    low: float | None
    high: float | None
    flops: dict[str, float]

    def share_of(self, path: str) -> float | None:
        """Share of tokens that a routed segment sends to ``path``; None where it is not known."""
        return None if self.share is None else self.share if path == "softmax" else 1 - self.share

    @property
    def name(self) -> str:
        """``Layer 2``, ``Layers 4–9``, or ``Layers 0, 4, … (6)``."""
        first, last = self.layers[0], self.layers[-1]
        if len(self.layers) == 1:
            return f"Layer {first}"
        if last - first + 1 == len(self.layers):
            return f"Layers {first}–{last}"
        return f"Layers {first}, {self.layers[1]}, … {last}"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model as a stack of segments from input to output.

    ``repeats`` says how often the stack is repeated (1 unless the pattern is periodic and long). ``router`` names
    the router; ``reads`` is the index in ``segments`` after which a parallel router reads, None for a sequential one
    and for controls.
    """

    segments: tuple[Segment, ...]
    repeats: int
    router: str | None
    reads: int | None
    sequential: bool
    control: bool
    block: bool
    granularity: str


def describe(arm: Arm) -> Architecture | None:
    """The architecture of ``arm``; None where its recipe gives no layer pattern."""
    pattern = arm.layer_pattern
    if not pattern:
        return None
    groups, repeats = _groups(pattern)
    rates = {site.site: site.rate.mean for site in site_routing(arm)}
    model = arm.example.value("recipe", "model") or {}
    flops = {str(path): float(value) for path, value in (arm.example.value("flops", "by_path") or {}).items()}
    segments = []
    for layers in groups:
        names = {f"layer{layer}" for layer in layers}
        found = [rate for site, rate in rates.items() if site.partition(".")[0] in names]
        kind = pattern[layers[0]]
        segments.append(
            Segment(
                kind=kind,
                layers=layers,
                share=sum(found) / len(found) if kind == "routed" and found else None,
                low=min(found) if found else None,
                high=max(found) if found else None,
                flops=flops,
            )
        )
    sequential = (arm.example.value("routing", "router") or model.get("router_mode")) == "sequential"
    control = arm.kind.control
    reads = None
    if "routed" in pattern and not (sequential or control):
        layer = model.get("router_layer")
        layer = pattern.index("routed") - 1 if layer is None else layer
        reads = next((index for index, layers in enumerate(groups) if layer in layers), None)
    return Architecture(
        segments=tuple(segments),
        repeats=repeats,
        router=_router_name(arm, sequential) if "routed" in pattern else None,
        reads=reads,
        sequential=sequential and not control,
        control=control,
        block=model.get("routed_unit") == "block",
        granularity=str(model.get("granularity") or "token"),
    )


def _groups(pattern: Sequence[str]) -> tuple[list[tuple[int, ...]], int]:
    if len(pattern) <= MOST_SINGLE_LAYERS:
        return [(index,) for index in range(len(pattern))], 1
    groups = [
        tuple(index for index, _ in group)
        for _, group in groupby(enumerate(pattern), key=lambda item: item[1])
    ]
    if len(groups) <= MOST_SINGLE_LAYERS:
        return groups, 1
    for period in range(2, len(pattern) // 2 + 1):
        times, rest = divmod(len(pattern), period)
        if not rest and list(pattern) == list(pattern[:period]) * times:
            unit, _ = _groups(pattern[:period])
            return [
                tuple(layer + period * turn for turn in range(times) for layer in layers) for layers in unit
            ], times
    return groups, 1


def _router_name(arm: Arm, sequential: bool) -> str:
    if not arm.kind.learned:
        return str(arm.kind)
    kind = arm.example.value("recipe", "model", "routing", "router")
    mode = "sequential" if sequential else "parallel"
    return f"{kind} router, {mode}" if kind else f"{mode} router"


def flops_by_use(arm: Arm) -> dict[str, float]:
    """Forward FLOPs per token of ``arm`` with every path computed, at its measured rate, and at an even split.

    The even split is left out for models without routed layers, and where the record lacks the cost of a path.
    """
    found = {}
    total, routed = arm.mean("flops", "forward_per_token"), arm.mean("flops", "routed_per_token")
    if total is None:
        return {}
    if not arm.kind.routed:
        return {"every token": total}
    found["every path computed"] = total
    if routed is not None:
        found["at the measured rate"] = routed
    paths = [arm.mean("flops", "by_path", path) for path in arm.paths]
    layers = arm.layer_pattern.count("routed")
    known = [cost for cost in paths if cost is not None]
    if layers and len(known) == 2:
        found["at 50/50"] = total - layers * sum(known) / 2
    return found


def architecture_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row a layer and path of each arm, with shares and cost."""
    rows = [
        (
            arm.label, layer, segment.kind, path, COMPLEXITY.get(path, ""),
            segment.share_of(path) if segment.kind == "routed" else 1.0, segment.flops.get(path),
        )
        for arm in arms
        if (architecture := describe(arm)) is not None
        for segment in architecture.segments
        for layer in segment.layers
        for path in (("gdn", "softmax") if segment.kind == "routed" else (segment.kind,))
    ]  # fmt: skip
    columns = ["arm", "layer", "kind", "path", "complexity", "share_of_tokens", "flops_per_token"]
    return pd.DataFrame(rows, columns=columns).sort_values(["arm", "layer"], kind="stable", ignore_index=True)


def flops_data(arms: Sequence[Arm]) -> pd.DataFrame:
    """Total forward FLOPs per token by use."""
    rows = [(arm.label, use, value) for arm in arms for use, value in flops_by_use(arm).items()]
    return pd.DataFrame(rows, columns=["arm", "use", "flops_per_token"])
