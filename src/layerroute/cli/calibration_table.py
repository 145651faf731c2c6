"""Tables of calibration and headroom for the terminal."""

from typing import Any

from layerroute.cli.output import make_console, print_rows
from layerroute.skipping.calibration.configuration import PRUNED
from layerroute.skipping.calibration.result import CAPTION


def show_calibration(record: dict[str, Any], verdict: str) -> None:
    """The arms of a calibration record, and the verdict last."""
    out, arms = make_console(), record["arms"]
    tokens = record["documents"] * record["recipe"]["length"]
    unit = record["recipe"]["unit"]
    of = "" if unit == "block" else f" of {unit}"
    out.print(
        f"{record['model']}, budget {record['recipe']['budget']:.0%}{of}: held-out cross-entropy in nats per token "
        f"({tokens:,} tokens of {record['documents']} documents of {record['data']['heldout_source']})",
        soft_wrap=True,
    )
    rows = []
    dense = arms["dense"]["loss"]
    for arm in arms.values():
        gap, unequal = arm["at_equal_cost"], arm["routed_minus_this"]
        rows.append(
            [
                arm["title"],
                f"{arm['skipped']:.1%}",
                f"{arm['saved']:.1%}",
                f"{arm['loss']:.4f}",
                f"{arm['loss'] - dense:+.4f}",
                "" if gap is None else f"{gap['mean']:+.4f}",
                "" if gap is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}",
                "" if unequal is None or arm is arms["dense"] else f"{unequal['mean']:+.4f}",
            ]
        )
        if arm is arms["routed"]:
            for budget, one in record.get("budgets", {}).items():
                shares = [f"{one['skipped']:.1%}", f"{one['saved']:.1%}"]
                losses = [f"{one['loss']:.4f}", f"{one['loss'] - dense:+.4f}"]
                rows.append([f"  at budget {float(budget):.0%}", *shares, *losses, "", "", ""])
    headings = [
        "",
        "skipped",
        "FLOPs saved",
        "cross-entropy",
        "above full",
        "routed - this",
        "95 % interval",
        "as served",
    ]
    print_rows(headings, rows)
    out.print(CAPTION, style="dim", soft_wrap=True)
    for name, layers in record["static"].items():
        method = name.removeprefix("block_")
        of, what = (" of whole layers", "block") if method != name else ("", unit)
        taken = ", ".join(map(str, layers))
        out.print(f"static prune{of} by {method} takes out {PRUNED[what]} {taken}", soft_wrap=True)
    rates = {layer: f"{site['rate']:.0%}" for layer, site in record["sites"].items() if site["rate"] > 0}
    same = len(set(rates.values())) == 1
    by_layer = ", ".join(f"{layer}: {rate}" for layer, rate in rates.items())
    told = f"{next(iter(rates.values()))} at every layer" if same else f"by layer: {by_layer}"
    out.print(f"routed, share of tokens that skip, {told}", soft_wrap=True)
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
