"""Drawing stacks of layers: boxes, arrows, both paths of a routed layer, the router beside it. Units are inches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from layerroute.capabilities.attention.architecture import (
    COMPLEXITY,
    Architecture,
    Segment,
    describe,
    flops_by_use,
)
from layerroute.lab.arms import Arm
from layerroute.lab.format import count, percent
from layerroute.lab.report.style import (
    GDN,
    GDN_PALE,
    GREY_PALE,
    INK,
    MUTED,
    PAPER,
    SOFTMAX,
    SOFTMAX_PALE,
    WIDTH,
    clip,
    new_figure,
)

FILL = {"gdn": GDN_PALE, "softmax": SOFTMAX_PALE, "window": SOFTMAX_PALE}
EDGE = {"gdn": GDN, "softmax": SOFTMAX, "window": SOFTMAX}
TITLE = {
    "gdn": ("Gated DeltaNet", "GDN"),
    "softmax": ("Softmax attention", "Softmax"),
    "window": ("Softmax over a window", "Window"),
}
_FIXED, _ROUTED, _END, _TOP = 0.92, 1.62, 0.62, 0.12  # heights
_DASHED: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (3, 2))}
_ROUND = "round,pad=0,rounding_size=0.05"
Point = tuple[float, float]


def architecture_figure(architecture: Architecture) -> Figure:
    """Layers from input to output; the thickness of a path's arrows follows its share of the tokens."""
    height = _height(architecture)
    figure, axes = _canvas(height)
    routed = architecture.router is not None
    stack = _Stack(axes, architecture, *((3.05, 0.98, 1.62, 0.08) if routed else (3.6, 0.98, 1.9, 0.6)))
    stack.draw(height - _TOP)
    if routed:
        stack.router()
        # What the lines mean, in the empty corner beside the last layer.
        left, y = 5.55, stack.places[-1][1]
        axes.plot([left, left + 0.3], [y + 0.3] * 2, **_DASHED)
        axes.text(left + 0.38, y + 0.3, "decisions", va="center", fontsize=7.2)
        for line, (path, width) in enumerate((("gdn", 4.0), ("softmax", 1.6))):
            axes.plot([left, left + 0.3], [y + 0.09 - 0.1 * line] * 2, color=EDGE[path], linewidth=width)
        axes.text(left + 0.38, y + 0.04, "tokens: width and\n% are their share", va="center", fontsize=7.2)
    return figure


def comparison_figure(left: Arm, right: Arm) -> Figure:
    """Two arms side by side on one scale, with the cost of each layer, and total FLOPs below; both must have layers."""
    described = [describe(arm) for arm in (left, right)]
    pair = [architecture for architecture in described if architecture is not None]
    tallest = max(map(_height, pair))
    totals = [(arm, use, value) for arm in (left, right) for use, value in flops_by_use(arm).items()]
    bars = 0.45 + 0.24 * len(totals) if totals else 0.0
    height = tallest + 0.35 + bars
    figure, axes = _canvas(height)
    long = max(len(arm.label) for arm in (left, right)) > 34
    for place, (arm, architecture) in enumerate(zip((left, right), pair, strict=True)):
        middle = 2.12 + 3.6 * place
        axes.text(
            middle, height - 0.1, clip(arm.label, 60 if long else 34), ha="center", va="top",
            fontsize=6 if long else 10, fontweight="bold",
        )  # fmt: skip
        stack = _Stack(axes, architecture, middle, 0.72, 1.28, middle - 2.04, small=True)
        stack.draw(height - 0.35 - _TOP, (tallest - _height(architecture)) / len(architecture.segments))
        if architecture.router is not None:
            stack.router()
    axes.plot([3.62, 3.62], [bars + 0.15, height - 0.15], color=GREY_PALE, linewidth=1.2)
    if totals:
        below = figure.add_axes((0.36, 0.33 / height, 0.47, (bars - 0.33) / height))
        for place, (arm, _, value) in enumerate(totals):
            below.barh(place, value, color=GDN if arm is left else SOFTMAX, height=0.66)
            ratio = f" ({value / totals[0][2]:.2f}×)" if place and totals[0][2] else ""
            below.text(value, place, f" {count(value)}{ratio}", va="center", fontsize=8)
        names = [f"{clip(arm.label, 38 - len(use))}: {use}" for arm, use, _ in totals]
        below.set_yticks(range(len(names)), names, fontsize=7.5)
        below.invert_yaxis()
        below.set_xticks([])
        below.grid(False)
        below.spines["bottom"].set_visible(False)
        below.set_xlabel("forward FLOPs per token, whole model", fontsize=8)
        below.tick_params(axis="y", length=0)
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = new_figure(height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def _height(architecture: Architecture) -> float:
    return _TOP + 2 * _END + sum(_ROUTED if s.kind == "routed" else _FIXED for s in architecture.segments)


@dataclass
class _Stack:
    """Where a stack is drawn: its middle, the half distance of its two paths, the width of a box, the names' left."""

    axes: Axes
    architecture: Architecture
    middle: float
    spread: float
    box: float
    names: float
    small: bool = False
    places: Sequence[Point] = ()

    def draw(self, top: float, gap: float = 0.0) -> None:
        """Draw downwards from ``top``, with ``gap`` after each segment, so that two stacks end at one height."""
        middle, y = self.middle, top - 0.32
        self.boxed(middle, top - 0.17, 1.5, 0.3, "tokens → embeddings")
        if self.architecture.repeats > 1:
            said = f"stack × {self.architecture.repeats}"
            self.axes.text(
                self.names, top - 0.17, said, va="center", fontsize=7.5, color=MUTED, fontstyle="italic"
            )
        places = []
        for segment in self.architecture.segments:
            height = _ROUTED if segment.kind == "routed" else _FIXED
            self.line(y - height, y - height - gap)
            if segment.kind == "routed":
                self.routed(segment, y)
            else:
                self.arrow((middle, y), (middle, y - 0.2))
                self.mixer(segment, segment.kind, middle, y - 0.4)
                self.boxed(middle, y - 0.7, self.box, 0.16, "MLP", size=7)
                self.line(y - 0.78, y - _FIXED)
            self.name(segment, y - height / 2)
            places.append((y, y - height))
            y -= height + gap
        self.places = places
        self.arrow((middle, y), (middle, y - 0.24))
        self.boxed(middle, y - 0.4, 1.5, 0.3, "LM head → next token")

    def name(self, segment: Segment, y: float) -> None:
        name = segment.name.replace("Layers ", "L") if self.small else segment.name
        below = ["routed" if segment.kind == "routed" else "fixed"]
        if len(segment.layers) > 1:
            below.append(f"{len(segment.layers)} layers")
        size = 7.5 if self.small else 8.5
        self.axes.text(self.names, y + 0.02, name, va="bottom", fontsize=size, fontweight="bold")
        self.axes.text(self.names, y - 0.02, "\n".join(below), va="top", fontsize=size - 0.5, color=MUTED)

    def routed(self, segment: Segment, y: float) -> None:
        middle, axes = self.middle, self.axes
        split, merge = y - 0.2, y - 1.24
        self.line(y, split)
        axes.add_patch(Circle((middle, split), 0.045, facecolor=INK, edgecolor="none", zorder=4))
        axes.add_patch(Circle((middle, merge), 0.09, facecolor=PAPER, edgecolor=INK, linewidth=0.9, zorder=4))
        axes.text(middle, merge - 0.005, "+", ha="center", va="center", fontsize=8, zorder=5)
        for path, side in (("gdn", -1), ("softmax", 1)):
            x, share = middle + side * self.spread, segment.share_of(path)
            width = 1.2 if share is None else 0.6 + 4.4 * share
            self.arrow((middle, split), (x, y - 0.5), width, EDGE[path])
            self.mixer(segment, path, x, y - 0.72, " + MLP" if self.architecture.block else "")
            self.arrow((x, y - 0.94), (middle + side * 0.09, merge), width, EDGE[path])
            text = "?" if share is None else percent(share)
            if share is not None and segment.low is not None and segment.high != segment.low:
                ends = sorted(abs((path == "gdn") - end) for end in (segment.low, segment.high or 0.0))
                text = f"{percent(share, 0)} ({100 * ends[0]:.0f}–{100 * ends[1]:.0f})"
            axes.text(
                middle + side * (self.spread * 0.72 + 0.08), y - 0.31, text, ha="left" if side > 0 else "right",
                va="center", fontsize=7.5 if "(" in text else 8.5, fontweight="bold", color=EDGE[path],
            )  # fmt: skip
        bottom = merge - 0.09
        if not self.architecture.block:
            self.boxed(middle, y - 1.46, self.box, 0.16, "MLP", size=7)
            self.line(bottom, y - 1.38)
            bottom = y - 1.54
        self.line(bottom, y - _ROUTED)

    def mixer(self, segment: Segment, path: str, x: float, y: float, tail: str = "") -> None:
        title, detail = TITLE.get(path, (path, path))[self.small or bool(tail)], COMPLEXITY.get(path, "")
        if self.small and path in segment.flops:
            detail = f"{detail} · {count(segment.flops[path], 'FLOP')}"
        edge = EDGE.get(path, MUTED)
        self.boxed(x, y, self.box, 0.42, "", FILL.get(path, GREY_PALE), edge)
        self.axes.text(
            x, y + 0.02, f"{title}{tail}", ha="center", va="bottom", fontsize=8.2, fontweight="bold", zorder=4
        )
        self.axes.text(x, y - 0.03, detail, ha="center", va="top", fontsize=7.2, color=edge, zorder=4)

    def router(self) -> None:
        """The router beside the stack, with dashed lines to every routed layer that it decides."""
        architecture, middle = self.architecture, self.middle
        ends = [
            y - 0.2
            for (y, _), segment in zip(self.places, architecture.segments, strict=True)
            if segment.kind == "routed"
        ]
        edge = middle + self.spread + self.box / 2 + (0.07 if self.small else 0.22)
        x, width, tall = (middle + 1.0, 0.62, 0.22) if self.small else (6.42, 1.36, 0.84)
        name, heads = (architecture.router or "").replace(", ", ",\n"), architecture.granularity == "head"
        unit = "one choice per token,\nlayer and head" if heads else "one choice per\ntoken and layer"
        small = "control" if architecture.control else "router"
        if architecture.sequential and not self.small:
            for y in ends:
                self.boxed(x, y + 0.02, width, 0.56, f"router of this layer:\n{unit}", PAPER, INK, 7)
                self.dashed((middle, y + 0.13), (x - width / 2, y + 0.13))
                self.dashed((x - width / 2, y), (middle + 0.05, y))
            return
        source = ends[0] if architecture.reads is None else self.places[architecture.reads][1] + 0.08
        y = source + (
            0.22
            if self.small and architecture.reads is None
            else 0.0
            if architecture.reads is None
            else -0.05
        )
        label = f"{name}:\nno learned router" if architecture.control else f"{name}\n{unit}"
        self.boxed(x, y, width, tall, small if self.small else label, PAPER, INK, 7 if self.small else 7.4)
        if not architecture.control:
            self.dashed((middle, y if self.small else source), (x - width / 2, y if self.small else source))
        # From the height of the first layer where the box reaches so far: a step of a hair's breadth is no step.
        start = y if self.small else ends[0] if abs(y - ends[0]) < 0.38 else y - 0.24
        out = x + width / 2 if self.small else x - width / 2
        for end in ends:
            bend = [] if end == start else [(edge, start), (edge, end)]
            self.dashed((out, start), *bend, (middle + 0.05, end))

    def boxed(
        self, x: float, y: float, width: float, height: float, text: str, fill: str = GREY_PALE, edge: str = MUTED,
        size: float = 7.8,
    ) -> None:  # fmt: skip
        corner = (x - width / 2, y - height / 2)
        self.axes.add_patch(
            FancyBboxPatch(
                corner,
                width,
                height,
                boxstyle=_ROUND,
                facecolor=fill,
                edgecolor=edge,
                linewidth=0.9,
                zorder=3,
            )
        )
        self.axes.text(
            x, y - 0.005, text, ha="center", va="center", fontsize=size, zorder=4, linespacing=1.15
        )

    def line(self, top: float, bottom: float) -> None:
        self.axes.plot(
            [self.middle] * 2, [top, bottom], color=MUTED, linewidth=1.2, snap=False, solid_capstyle="butt"
        )

    def arrow(
        self, start: Point, end: Point, width: float = 1.2, color: str = MUTED, head: float = 3.2
    ) -> None:
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle=f"-|>,head_length={head},head_width=2.2", mutation_scale=1, shrinkA=0, shrinkB=0,
                linewidth=width, color=color, zorder=2 if width else 5, capstyle="butt", joinstyle="miter",
            )
        )  # fmt: skip

    def dashed(self, *points: Point) -> None:
        """A line of decisions that ends in an arrow head."""
        self.axes.plot(*zip(*points, strict=True), **_DASHED, zorder=1.5)
        self.arrow(points[-2], points[-1], 0, INK, 4)
