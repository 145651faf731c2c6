"""Drawing a stack of layers: boxes, arrows, both paths of a routed layer, and the router beside it."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from layerroute.lab.format import count, percent
from layerroute.lab.report.architecture import COMPLEXITY, Architecture, Segment
from layerroute.lab.report.style import (
    GDN,
    GDN_PALE,
    GREY_PALE,
    INK,
    MUTED,
    PAPER,
    SOFTMAX,
    SOFTMAX_PALE,
)

FILL = {"gdn": GDN_PALE, "softmax": SOFTMAX_PALE}
EDGE = {"gdn": GDN, "softmax": SOFTMAX}
TITLE = {"gdn": "Gated DeltaNet", "softmax": "Softmax attention"}

# Heights in inches.
_FIXED, _ROUTED, _END, TOP = 0.92, 1.62, 0.62, 0.12


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where a stack is drawn: its middle, the half distance of its two paths, and the width of a box, in inches."""

    middle: float
    spread: float
    box: float
    names: float
    small: bool = False


def stack_height(architecture: Architecture) -> float:
    """Inches that a stack needs."""
    return TOP + 2 * _END + sum(_ROUTED if s.kind == "routed" else _FIXED for s in architecture.segments)


def share_of(segment: Segment, path: str) -> float | None:
    """Share of tokens that a routed segment sends to ``path``; None where it is not known."""
    if segment.share is None:
        return None
    return segment.share if path == "softmax" else 1 - segment.share


def draw_stack(
    axes: Axes, architecture: Architecture, column: Column, top: float, gap: float = 0.0
) -> list[tuple[float, float]]:
    """Draw input, segments and output downwards from ``top``; return where each segment begins and ends.

    ``gap`` inches are added after each segment, so that two stacks can end at one height.
    """
    middle = column.middle
    _box(axes, middle, top - 0.17, 1.5, 0.3, "tokens → embeddings", GREY_PALE, MUTED)
    if architecture.repeats > 1:
        axes.text(
            column.names,
            top - 0.17,
            f"stack × {architecture.repeats}",
            va="center",
            fontsize=7.5,
            color=MUTED,
            fontstyle="italic",
        )
    y = top - 0.32
    places = []
    for segment in architecture.segments:
        height = _ROUTED if segment.kind == "routed" else _FIXED
        _line(axes, middle, y - height, y - height - gap)
        if segment.kind == "routed":
            _routed(axes, segment, architecture, column, y)
        else:
            _fixed(axes, segment, column, y)
        _layer_name(axes, segment, column, y - height / 2)
        places.append((y, y - height))
        y -= height + gap
    _arrow(axes, (middle, y), (middle, y - 0.24))
    _box(axes, middle, y - 0.4, 1.5, 0.3, "LM head → next token", GREY_PALE, MUTED)
    return places


def _layer_name(axes: Axes, segment: Segment, column: Column, y: float) -> None:
    name = segment.name.replace("Layers ", "L") if column.small else segment.name
    lines = [name, "routed" if segment.kind == "routed" else "fixed"]
    if len(segment.layers) > 1:
        lines.append(f"{len(segment.layers)} layers")
    size = 7.5 if column.small else 8.5
    axes.text(column.names, y + 0.02, lines[0], ha="left", va="bottom", fontsize=size, fontweight="bold")
    axes.text(
        column.names, y - 0.02, "\n".join(lines[1:]), ha="left", va="top", fontsize=size - 0.5, color=MUTED
    )


def _fixed(axes: Axes, segment: Segment, column: Column, y: float) -> None:
    middle = column.middle
    _arrow(axes, (middle, y), (middle, y - 0.2))
    _mixer(axes, segment, segment.kind, middle, y - 0.4, column)
    _box(axes, middle, y - 0.7, column.box, 0.16, "MLP", GREY_PALE, MUTED, size=7)
    _line(axes, middle, y - 0.78, y - _FIXED)


def _routed(axes: Axes, segment: Segment, architecture: Architecture, column: Column, y: float) -> None:
    middle = column.middle
    split, merge = y - 0.2, y - 1.24
    _line(axes, middle, y, split)
    axes.add_patch(Circle((middle, split), 0.045, facecolor=INK, edgecolor="none", zorder=4))
    axes.add_patch(Circle((middle, merge), 0.09, facecolor=PAPER, edgecolor=INK, linewidth=0.9, zorder=4))
    axes.text(middle, merge - 0.005, "+", ha="center", va="center", fontsize=8, zorder=5)
    for path, side in (("gdn", -1), ("softmax", 1)):
        x = middle + side * column.spread
        part = share_of(segment, path)
        width = 1.2 if part is None else 0.6 + 4.4 * part
        _arrow(axes, (middle, split), (x, y - 0.5), width=width, color=EDGE[path])
        tail = " + MLP" if architecture.block else ""
        _mixer(axes, segment, path, x, y - 0.72, column, tail=tail)
        _arrow(axes, (x, y - 0.94), (middle + side * 0.09, merge), width=width, color=EDGE[path])
        text = "?" if part is None else percent(part)
        if (
            segment.low is not None
            and segment.high is not None
            and segment.low != segment.high
            and part is not None
        ):
            low, high = (
                (segment.low, segment.high) if path == "softmax" else (1 - segment.high, 1 - segment.low)
            )
            text = f"{percent(part, 0)} ({100 * low:.0f}–{100 * high:.0f})"
        axes.text(
            middle + side * (column.spread * 0.72 + 0.08),
            y - 0.31,
            text,
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=7.5 if "(" in text else 8.5,
            fontweight="bold",
            color=EDGE[path],
        )
    bottom = merge - 0.09
    if not architecture.block:
        _box(axes, middle, y - 1.46, column.box, 0.16, "MLP", GREY_PALE, MUTED, size=7)
        _line(axes, middle, bottom, y - 1.38)
        bottom = y - 1.54
    _line(axes, middle, bottom, y - _ROUTED)


def _mixer(
    axes: Axes, segment: Segment, path: str, x: float, y: float, column: Column, tail: str = ""
) -> None:
    title = TITLE.get(path, path)
    if column.small or tail:
        title = {"gdn": "GDN", "softmax": "Softmax"}.get(path, path)
    detail = COMPLEXITY.get(path, "")
    if column.small and path in segment.flops:
        detail = f"{detail} · {count(segment.flops[path], 'FLOP')}"
    _box(axes, x, y, column.box, 0.42, "", FILL.get(path, GREY_PALE), EDGE.get(path, MUTED))
    axes.text(
        x, y + 0.02, f"{title}{tail}", ha="center", va="bottom", fontsize=8.2, fontweight="bold", zorder=4
    )
    axes.text(x, y - 0.03, detail, ha="center", va="top", fontsize=7.2, color=EDGE.get(path, MUTED), zorder=4)


def draw_router(
    axes: Axes, architecture: Architecture, column: Column, places: list[tuple[float, float]]
) -> None:
    """The router beside the stack of figure 1, with dashed lines to every routed layer that it decides."""
    routed = [index for index, segment in enumerate(architecture.segments) if segment.kind == "routed"]
    left, x, width = column.middle + column.spread + column.box / 2, 6.42, 1.36
    name = (architecture.router or "").replace(", ", ",\n")
    unit = (
        "one choice per token,\nlayer and head"
        if architecture.granularity == "head"
        else "one choice per\ntoken and layer"
    )
    if architecture.sequential:
        for index in routed:
            y = places[index][0] - 0.2
            _box(axes, x, y + 0.02, width, 0.56, f"router of this layer:\n{unit}", PAPER, INK, size=7)
            _path(axes, [(column.middle, y + 0.13), (x - width / 2, y + 0.13)], arrow=True)
            _path(axes, [(x - width / 2, y), (column.middle + 0.05, y)], arrow=True)
        return
    if architecture.control:
        y = places[routed[0]][0] - 0.2
        label = f"{name}:\nno learned router"
    else:
        assert architecture.reads is not None
        source = places[architecture.reads][1] + 0.08
        y = source - 0.05
        label = f"{name}\n{unit}"
    _box(axes, x, y, width, 0.84, label, PAPER, INK, size=7.4)
    if not architecture.control:
        _path(axes, [(column.middle, source), (x - width / 2, source)], arrow=True)
    trunk = left + 0.22
    ends = [places[index][0] - 0.2 for index in routed]
    # From the height of the first layer where the box reaches so far: a step of a hair's breadth is no step.
    start = ends[0] if abs(y - ends[0]) < 0.38 else y - 0.24
    for end in ends:
        bend = [] if end == start else [(trunk, start), (trunk, end)]
        _path(axes, [(x - width / 2, start), *bend, (column.middle + 0.05, end)], arrow=True)


def draw_key(axes: Axes, y: float) -> None:
    """What the lines of figure 1 mean, in the empty corner beside the last layer."""
    left = 5.55
    axes.plot([left, left + 0.3], [y + 0.3] * 2, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.text(left + 0.38, y + 0.3, "decisions", va="center", fontsize=7.2)
    for index, (path, width) in enumerate((("gdn", 4.0), ("softmax", 1.6))):
        axes.plot([left, left + 0.3], [y + 0.09 - 0.1 * index] * 2, color=EDGE[path], linewidth=width)
    axes.text(left + 0.38, y + 0.04, "tokens: width and\n% are their share", va="center", fontsize=7.2)


def draw_router_mark(
    axes: Axes, architecture: Architecture, column: Column, places: list[tuple[float, float]]
) -> None:
    """A small mark of where decisions are made, for figure 4."""
    routed = [index for index, segment in enumerate(architecture.segments) if segment.kind == "routed"]
    y = places[routed[0]][0] + 0.02
    if architecture.reads is not None:
        y = places[architecture.reads][1] + 0.02
    label = "control" if architecture.control else "routers" if architecture.sequential else "router"
    x = column.middle + 1.0
    _box(axes, x, y, 0.62, 0.22, label, PAPER, INK, size=7)
    _path(axes, [(column.middle, y), (x - 0.31, y)], arrow=True)
    edge = column.middle + column.spread + column.box / 2 + 0.07
    last = places[routed[-1]][0] - 0.2
    _path(axes, [(x + 0.31, y), (edge, y), (edge, last)], arrow=False)
    for index in routed:
        end = places[index][0] - 0.2
        _path(axes, [(edge, end), (column.middle + 0.05, end)], arrow=True)


def _box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    fill: str,
    edge: str,
    size: float = 7.8,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=fill,
            edgecolor=edge,
            linewidth=0.9,
            zorder=3,
        )
    )
    axes.text(x, y - 0.005, text, ha="center", va="center", fontsize=size, zorder=4, linespacing=1.15)


def _line(axes: Axes, x: float, top: float, bottom: float) -> None:
    axes.plot([x, x], [top, bottom], color=MUTED, linewidth=1.2, snap=False, solid_capstyle="butt")


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], width: float = 1.2, color: str = MUTED
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>,head_length=3.2,head_width=2.2",
            mutation_scale=1,
            shrinkA=0,
            shrinkB=0,
            linewidth=width,
            color=color,
            zorder=2,
            capstyle="butt",
            joinstyle="miter",
        )
    )


def _path(axes: Axes, points: list[tuple[float, float]], *, arrow: bool) -> None:
    """A dashed line of decisions; the last stretch ends in an arrow head."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.5)
    if arrow:
        axes.add_patch(
            FancyArrowPatch(
                points[-2],
                points[-1],
                arrowstyle="-|>,head_length=4,head_width=2",
                mutation_scale=1,
                shrinkA=0,
                shrinkB=0,
                linewidth=0,
                color=INK,
                zorder=5,
            )
        )
