"""Speed-up of routed execution against the share that is skipped, from a benchmark record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from layerroute.errors import UserError
from layerroute.report.style import GDN, INK, MUTED, SOFTMAX, WIDTH, figure_style, new_figure

_ARMS = (("sparse", SOFTMAX, "o-"), ("masked", GDN, "s--"))


def speed_figure(record: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each size: sparse and masked against the share skipped, and the ideal line.

    The ideal is the structural limit at exactly that share: the same model with so many layers removed.

    Args:
        record: of ``layerroute bench prefill`` or ``decode``.
        path: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        UserError: if the record has nothing to draw.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        if "skip" in row and "limit" in row:
            panels.setdefault(f"{row['batch']} x {row['time']} tokens", []).append(row)
    if not panels:
        raise UserError(
            f"bench {record['case']} has no structural limit to draw; --figure is for prefill and decode"
        )
    with figure_style():
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure = new_figure(WIDTH * columns / 3 if columns > 1 else WIDTH / 2, 2.7 * lines)
        for place, (title, rows) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(lines, columns, place)
            _panel(axes, sorted(rows, key=lambda row: float(row["skip"])))
            axes.set_title(f"{record['case']}, {title}")
            if place == 1:
                axes.legend()
        figure.tight_layout()
        figure.savefig(path, dpi=200)


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    shares = [100 * row["skip"] for row in rows]
    # sparse / (share of the limit that sparse reaches) is the limit at exactly the share in question
    ideal = [
        row["arms"]["sparse"]["speedup"]["median"] / row["arms"]["sparse"]["share_of_limit"]["median"]
        for row in rows
    ]
    axes.plot([0, *shares], [1, *ideal], ":", color=INK, label="layers removed")
    for name, color, marker in _ARMS:
        spread = [row["arms"][name]["speedup"] for row in rows if name in row["arms"]]
        if len(spread) == len(rows):
            middle = [one["median"] for one in spread]
            error = [
                [one["median"] - one["q1"] for one in spread],
                [one["q3"] - one["median"] for one in spread],
            ]
            axes.errorbar(shares, middle, yerr=error, fmt=marker, color=color, markersize=4, label=name)
    axes.axhline(1.0, color=MUTED, linewidth=0.8)
    axes.set_xlabel("skipped (% of routed layers)")
    axes.set_ylabel("times as fast as dense")
