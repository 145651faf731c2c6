"""Names beside points, placed so that none covers another or a point."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from layerroute.lab.report.style import MUTED, PAPER

Floats = NDArray[np.float64]

_RADII = (5.0, 11.0, 18.0, 27.0, 38.0, 52.0)  # points
_DIRECTIONS = ((1, 0.7), (1, -0.7), (-1, 0.7), (-1, -0.7), (0, 1), (0, -1), (1, 0), (-1, 0))
_SIZE = 6.5  # of the font
_POINT = 4.0  # half the side of the square, in points, that a marker takes


def label_points(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write each of ``texts`` beside its point, with a thin line where it had to move away.

    The limits of ``axes`` must be final. Names stay within the axes, and keep clear of all points and of each other as
    long as there is room; where there is none, each takes the place where it covers least.

    Args:
        points: in data coordinates.
    """
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    renderer = canvas.get_renderer()
    axes.get_xlim(), axes.get_ylim()  # settles limits that are to follow the data
    scale = renderer.points_to_pixels(1.0)
    places = axes.transData.transform(np.asarray(points, dtype=np.float64))
    inside = axes.get_window_extent(renderer)
    half = scale * _POINT
    taken = np.concatenate([places - half, places + half], axis=1)
    # Crowded points choose first: who stands alone finds room anyway.
    near = [sum(np.hypot(*(place - other)) < 60 * scale for other in places) for place in places]
    for index in sorted(range(len(texts)), key=lambda i: (-near[i], i)):
        probe = axes.text(0, 0, texts[index], fontsize=_SIZE)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        width, height = extent.width + 2 * scale, extent.height
        boxes, radii = _candidates(places[index], width, height, scale)
        best = int(np.argmin(_covered(boxes, taken, inside)))
        taken = np.concatenate([taken, boxes[best : best + 1]])
        offset = ((boxes[best, :2] + boxes[best, 2:]) / 2 - places[index]) / scale
        axes.annotate(
            texts[index],
            points[index],
            xytext=(float(offset[0]), float(offset[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SIZE,
            color=MUTED,
            path_effects=[withStroke(linewidth=1.8, foreground=PAPER)],
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if radii[best] > _RADII[0]
            else None,
        )


def _candidates(place: Floats, width: float, height: float, scale: float) -> tuple[Floats, Floats]:
    """Boxes around ``place`` as rows of left, bottom, right, top, the nearest first, and their distance in points."""
    radius = np.repeat(_RADII, len(_DIRECTIONS))
    right, up = np.tile(np.asarray(_DIRECTIONS, dtype=np.float64).T, len(_RADII))
    x = place[0] + right * (scale * radius + width / 2)
    y = place[1] + up * (scale * radius + height / 2)
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1), radius


def _covered(boxes: Floats, taken: Floats, inside: Bbox) -> Floats:
    """Pixels of each of ``boxes`` that lie on one of ``taken``, and ten times those outside."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    outside = area - _shared(boxes, np.asarray([inside.extents]))[:, 0]
    found: Floats = 10 * outside.round(6) + _shared(boxes, taken).sum(axis=1)
    return found


def _shared(ours: Floats, theirs: Floats) -> Floats:
    """Pixels that each box of one list has in common with each of another."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    found: Floats = np.prod((high - low).clip(min=0), axis=2)
    return found
