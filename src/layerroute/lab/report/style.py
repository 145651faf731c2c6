"""Colours, lines and the way figures are saved: the same everywhere, and the same bytes every time."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
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
DPI = 160
SHARES = LinearSegmentedColormap.from_list("shares", [PAPER, SOFTMAX_PALE, SOFTMAX])
"""From none to all."""
BETWEEN = LinearSegmentedColormap.from_list("between", [GDN, PAPER, SOFTMAX])
"""From one path to the other, or from below to above."""

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
_DASHES = ((0, (4, 1.6)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
_DOTTED = (0, (1, 1.4))
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
    dashes: Any = "-"
    marker: str = "o"

    def line(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``."""
        return {"color": self.color, "linestyle": self.dashes}


Look = tuple[str, str]
"""Marker and colour of a kind of arm."""


def arm_styles(
    arms: Sequence[Arm],
    baseline: Arm | None,
    subject: Arm | None,
    looks: Mapping[str, Look] | None = None,
) -> dict[str, LineStyle]:
    """A style for each arm by label.

    With ``looks`` (by kind of arm) an arm has the marker of its kind and a shade of its colour, the subject the pure
    one.
    Without, the baseline is a blue solid line, the arm in question an orange dashed one, and others have colours and
    markers of their own; dashes are a learned router, dots a control.
    """
    if looks is None:
        others = iter(_OTHERS * (1 + len(arms) // len(_OTHERS)))
        own = [GDN if arm is baseline else SOFTMAX if arm is subject else next(others) for arm in arms]
        dashes = [_DOTTED if arm.kind.control else _DASHES[0] if arm.kind.learned else "-" for arm in arms]
        return {
            arm.label: LineStyle(
                color=own[place], dashes=dashes[place], marker=_MARKERS[place % len(_MARKERS)]
            )
            for place, arm in enumerate(arms)
        }
    styles: dict[str, LineStyle] = {}
    before: Counter[str] = Counter()
    for arm in sorted(arms, key=lambda arm: arm is not subject):
        kind = str(arm.kind)
        marker, colour = looks.get(kind, ("o", MUTED))
        number = before[kind]
        before[kind] += 1
        solid = not number and colour in (GDN, SOFTMAX)
        styles[arm.label] = LineStyle(
            color=shade(colour, number),
            dashes="-" if solid else _DASHES[number % len(_DASHES)],
            marker=marker,
        )
    return styles


def new_figure(
    height: float, width: float = WIDTH, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of a size in inches, without pyplot's global state.

    ``constrained`` finds the room for all texts once, when the figure is saved.
    """
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def settle(figure: Figure) -> None:
    """Lay ``figure`` out, once for all formats."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def save_figure(figure: Figure, folder: Path, name: str, formats: Iterable[str] = FORMATS) -> None:
    """Write ``folder/name.{png,svg,pdf}``; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    settle(figure)
    for suffix in formats:
        figure.savefig(folder / f"{name}.{suffix}", format=suffix, dpi=DPI, metadata=_METADATA[suffix])


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


def legend_below(
    figure: Figure, handles: Sequence[Any], names: Sequence[str], title: str = "", **settings: Any
) -> float:
    """A legend under all panels, in as many columns as a page holds; returns the inches that it takes."""
    longest = max(map(len, names), default=0)
    columns = max(
        1, min(len(names), 4 if longest <= 16 else 3 if longest <= 26 else 2 if longest <= 40 else 1)
    )
    figure.legend(handles, names, loc="outside lower center", ncols=columns, title=title or None, **settings)
    return 0.14 + 0.18 * -(-len(names) // columns) + 0.13 * len(title.splitlines())
