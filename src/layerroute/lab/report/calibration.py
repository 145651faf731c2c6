"""The picture of one calibration: what every arm saves and loses, and routing at the cost of each control."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from layerroute.lab.report.style import GDN, INK, MUTED, SOFTMAX, figure_style, legend_below, new_figure


def calibration_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Cross-entropy above full depth against the share of FLOPs saved.

    A dot an arm as it is served. Above each control's share hangs the routed arm as it was moved there, with the 95 %
    interval of the difference.

    Args:
        rows: as ``Calibration.table`` gives them.
    """
    with figure_style():
        figure = new_figure(3.2)
        axes = figure.subplots()
        axes.axhline(0.0, color=INK, linewidth=0.9)
        for row in rows:
            own = row["arm"].startswith(("routed", "  at budget"))
            if row["arm"] == "full depth":
                continue
            place = 100 * row["saved"], row["above_full"]
            axes.plot(*place, "o", color=SOFTMAX if own else GDN, markersize=7 if own else 5)
            if own:
                continue
            axes.annotate(
                row["arm"], place, xytext=(6, 3), textcoords="offset points", color=MUTED, fontsize=7
            )
            if row["difference"] is not None:
                ends = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
                moved = row["above_full"] + row["difference"]
                axes.errorbar(place[0], moved, yerr=ends, fmt="D", color=SOFTMAX, markersize=4, capsize=3)
        axes.set_xlabel("FLOPs of the layers saved (%)")
        axes.set_ylabel("cross-entropy above full depth (nats / token)")
        axes.margins(x=0.15, y=0.15)
        handles = [
            axes.plot([], [], mark, color=color)[0]
            for mark, color in (("o", SOFTMAX), ("o", GDN), ("D", SOFTMAX))
        ]
        texts = ["routed, as served", "control", "routed, at the control's cost"]
        figure.set_figheight(3.2 + legend_below(figure, handles, texts))
    return figure


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element for a page."""
    out = io.StringIO()
    with figure_style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
