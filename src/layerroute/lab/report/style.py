"""Colours, lines and the way figures are saved: the same everywhere, and the same bytes every time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure

from layerroute.lab.arms import Arm

GDN, SOFTMAX = "#2f6fb7", "#e07b1a"
GDN_PALE, SOFTMAX_PALE, GREY_PALE = "#dbe8f6", "#fbe6d0", "#eceef1"
INK, MUTED, GRID, PAPER = "#1f2430", "#5c6573", "#d8dce2", "#ffffff"

# What an inlined SVG takes from the page instead, so that figures follow its light or dark colours.
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    GDN: "var(--gdn)",
    SOFTMAX: "var(--softmax)",
    GDN_PALE: "var(--gdn-pale)",
    SOFTMAX_PALE: "var(--softmax-pale)",
    GREY_PALE: "var(--grey-pale)",
}
FORMATS = ("png", "svg", "pdf")
WIDTH = 7.2  # inches: a page's text width
SHARES = LinearSegmentedColormap.from_list("shares", [PAPER, SOFTMAX_PALE, SOFTMAX])
"""From none to all."""

_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": PAPER,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "layerroute",
    "pdf.fonttype": 3,
    "path.simplify": True,
}
# Metadata that would say when and by which version a figure was made: left out, so that the same data give the same
# bytes.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_OTHERS = (
    "#2a9d8f", "#8a63b3", "#c2447f", "#7a8a1f", "#8c5a3c", "#4aa3df", "#d1495b", "#5f7a76", "#b08d00",
    "#3b3f9e", "#e39bb5", "#0f6b4f", "#b79be0", "#6b1f3a",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "p", "h")


@contextmanager
def figure_style() -> Iterator[None]:
    """The project's matplotlib settings over matplotlib's own defaults, whatever the user's are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in _SETTINGS.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        yield


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """How an arm's curves and points are drawn."""

    color: str
    dashes: Any
    marker: str = "o"

    def line(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``."""
        return {"color": self.color, "linestyle": self.dashes}


def arm_styles(arms: Sequence[Arm], baseline: Arm | None, subject: Arm | None) -> dict[str, LineStyle]:
    """A style for each arm by label.

    The baseline is a blue solid line, the dynamic arm in question an orange dashed one. Others keep the meaning of
    the dashes in colours of their own: solid is static, dashed a learned router, dotted a control. Neighbours have
    markers of their own, too, for who cannot tell the colours.
    """
    others = iter(_OTHERS * (1 + len(arms) // len(_OTHERS)))
    styles = {}
    for index, arm in enumerate(arms):
        if arm is baseline:
            color = GDN
        elif arm is subject:
            color = SOFTMAX
        else:
            color = next(others)
        dashes: Any = "-"
        if arm.kind.learned:
            dashes = (0, (4, 1.6))
        elif arm.kind.control:
            dashes = (0, (1, 1.4))
        styles[arm.label] = LineStyle(color=color, dashes=dashes, marker=_MARKERS[index % len(_MARKERS)])
    return styles


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, without pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def blank_axes(figure: Figure, box: tuple[float, float, float, float], width: float, height: float) -> Axes:
    """Axes without axes, for diagrams: coordinates in inches from the lower left corner of ``box`` (figure shares)."""
    axes = figure.add_axes(box)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return axes


def save_figure(figure: Figure, folder: Path, name: str, formats: Iterable[str] = FORMATS) -> None:
    """Write ``folder/name.{png,svg,pdf}``; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in formats:
        figure.savefig(folder / f"{name}.{suffix}", format=suffix, dpi=200, metadata=_METADATA[suffix])


def clip(text: str, length: int) -> str:
    """``text``, or its beginning with an ellipsis, in at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shade(color: str, step: int) -> str:
    """``color`` itself for step 0, then darker and paler ones in turn: arms of one family in one hue."""
    if step == 0:
        return color
    towards = 0.0 if step % 2 else 1.0
    share = min(0.65, 0.28 * ((step + 1) // 2))
    red, green, blue = ((1 - share) * part + share * towards for part in to_rgb(color))
    return to_hex((red, green, blue))


def legend_below(figure: Figure, axes: Axes, labels: int, longest: int, height: float) -> None:
    """The legend of ``axes`` under the panels of ``figure``, in as many columns as ``columns_for`` says.

    Args:
        labels: how many there are.
        longest: characters of the longest.
        height: of the figure, in inches.
    """
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.03 / height),
        ncols=columns_for(labels, longest),
    )


def columns_for(labels: int, longest: int) -> int:
    """Columns of a legend of so many labels that fit a page's width, the longest of so many characters."""
    return max(1, min(labels, 4 if longest <= 16 else 3 if longest <= 26 else 2 if longest <= 40 else 1))


def legend_height(labels: int, longest: int) -> float:
    """Inches that ``legend_below`` needs."""
    return 0.14 + 0.18 * -(-labels // columns_for(labels, longest))
