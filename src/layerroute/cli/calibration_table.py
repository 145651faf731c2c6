"""Tables of calibration and headroom for the terminal."""

from typing import Any

from layerroute.cli.output import make_console, print_rows
from layerroute.skipping.calibration import result


def show_calibration(record: dict[str, Any], verdict: str) -> None:
    """The arms of a calibration record, and the verdict last."""
    out = make_console()
    out.print(result.title(record), soft_wrap=True)
    print_rows(result.HEADINGS, [result.cells(row) for row in result.rows(record)])
    out.print(result.CAPTION, style="dim", soft_wrap=True)
    for fact in result.facts(record):
        out.print(fact, soft_wrap=True)
    out.print(verdict, style="bold", soft_wrap=True)
    total = sum(record["seconds"].values())
    out.print(f"{total:.0f} s of calibration", soft_wrap=True)


def show_headroom(record: dict[str, Any], verdict: str) -> None:
    """Influence, static and random by rate, the caption, and the verdict last."""
    out = make_console()
    unit = record["recipe"]["unit"]
    of = "" if unit == "block" else f" about {unit}"
    out.print(
        f"{record['model']}: cross-entropy in nats per token with decisions{of} by known influence "
        f"({record['tokens']:,} tokens of {record['documents']} documents; full depth {record['dense']:.4f})",
        soft_wrap=True,
    )
    rows = []
    for row in record["rows"]:
        gap = row["gap"]
        held = ["no static at its FLOPs", ""]
        if gap is not None:
            held = [f"{gap['mean']:+.4f}", f"{gap['low']:+.4f} to {gap['high']:+.4f}"]
        rows.append([f"{row['budget']:.0%}", *_served(row["influence"]), *held])
        rows += [["  static", *_served(arm), "", ""] for arm in row["static"]]
        rows.append(["  random", *_served(row["random"]), "", ""])
    headings = ["budget", "skipped", "FLOPs", "cross-entropy", "influence - static", "interval"]
    print_rows(headings, rows)
    out.print(record["caption"], style="dim", soft_wrap=True)
    out.print(verdict, style="bold", soft_wrap=True)


def _served(arm: dict[str, Any]) -> list[str]:
    flops = "" if arm["executed"] is None else f"{arm['executed']:.1%}"
    return [f"{arm['skipped']:.1%}", flops, f"{arm['loss']:.4f}"]
