"""The outcome of a calibration as plain data: for records, tables and whoever reads them without torch."""

from collections.abc import Mapping
from typing import Any

from layerroute.outcomes import Outcome, outcome_at_equal_cost
from layerroute.skipping.calibration.calibrate import FittedArms
from layerroute.skipping.calibration.configuration import PRUNED
from layerroute.skipping.calibration.equal_cost import Matched
from layerroute.skipping.calibration.heldout import Score, paired_bootstrap

CONTROLS = {
    "static_influence": "static prune, by influence",
    "static_greedy": "static prune, greedy by loss",
    "static_block_influence": "static prune of whole layers, by influence",
    "static_block_greedy": "static prune of whole layers, greedy by loss",
    "random": "random",
    "periodic": "periodic",
    "early_exit": "early exit",
}
TITLES = {"dense": "full depth", "routed": "routed per token", **CONTROLS}


CAPTION = (
    "routed - this: at equal executed FLOPs. All thresholds of the routed arm are moved by one offset, until it saves "
    "what this arm saves on this very text; the last half point is read off between two. As served: at unequal "
    "cost, no verdict."
)


def result_sections(
    calibration: FittedArms, scores: dict[str, Score], against: Mapping[str, Matched | None] | None = None
) -> dict[str, Any]:
    """``arms``, ``static``, ``sites``, ``rounds``, ``seconds``, ``documents`` of a record.

    Args:
        scores: of all arms as served.
        against: by control, the routed arm moved to its cost (`compare_arms`). What is missing gets no verdict.
    """
    routed = scores["routed"]
    arms = {
        name: arm_section(name, score, routed, (against or {}).get(name)) for name, score in scores.items()
    }
    unit = calibration.skip.unit
    if calibration.skip.granularity == "sequence":
        arms["routed"]["title"] = "routed per sequence"
    sites = {
        str(site_name(unit, place)): {
            "rate": site.rate,
            "r2": None if site.predictor is None else site.predictor.r2,
        }
        for place, site in calibration.policy.sites.items()
    }
    return {
        "arms": arms,
        "static": {
            name: [site_name("block" if name.startswith("block_") else unit, place) for place in places]
            for name, places in calibration.static.items()
        },
        "sites": sites,
        "rounds": [
            {
                "loss": one["loss"],
                "rates": {str(site_name(unit, place)): rate for place, rate in one["rates"].items()},
            }
            for one in calibration.rounds
        ],
        "chosen_round": calibration.chosen,
        "seconds": calibration.seconds,
        "documents": len(routed.losses),
    }


def site_name(unit: str, place: int) -> int | str:
    """What a record calls a site: its layer, or ``4.mlp`` where a layer has several."""
    units = unit.split("+")
    layer, half = divmod(place, len(units))
    return layer if len(units) == 1 else f"{layer}.{units[half]}"


def arm_section(name: str, score: Score, routed: Score, match: Matched | None) -> dict[str, Any]:
    """One arm: its loss and what it saves, routed less this arm as served, and ``at_equal_cost``, or None."""
    unequal = paired_bootstrap(routed.losses, score.losses) if name != "routed" else None
    return {
        "title": TITLES.get(name, name),
        "loss": score.loss,
        "skipped": score.skipped,
        "saved": score.saved,
        "skipped_by_layer": {str(layer): share for layer, share in score.skipped_by_layer.items()},
        "routed_minus_this": None
        if unequal is None
        else {"mean": unequal.mean, "low": unequal.low, "high": unequal.high},
        "at_equal_cost": None if match is None else match.to_dict(),
    }


_WORDS = {Outcome.WINS: "beats", Outcome.LOSES: "loses to", Outcome.NO_DIFFERENCE: "cannot be told from"}


def verdict(arms: dict[str, Any]) -> str:
    """What the table comes to, at equal executed FLOPs alone: wins, losses and what cannot be told apart."""
    parts, none = [], []
    for name in CONTROLS:
        if name not in arms:
            continue
        arm, gap = arms[name], arms[name]["at_equal_cost"]
        if gap is None:
            none.append(f"{arm['title']} (it saves {arm['saved']:.1%}, routed {arms['routed']['saved']:.1%})")
            continue
        parts.append(
            f"{_WORDS[outcome_at_equal_cost(gap)]} {arm['title']} ({gap['mean']:+.3f} nats, 95 % {gap['low']:+.3f} to "
            f"{gap['high']:+.3f})"
        )
    routing = f"per-{arms['routed']['title'].rpartition(' ')[2]} routing"  # token, or sequence
    told = f"At equal executed FLOPs {routing} {'; '.join(parts)}." if parts else ""
    missing = f"No verdict against {'; '.join(none)}: routing does not reach that share." if none else ""
    return " ".join(filter(None, (told, missing)))


HEADINGS = (
    "",
    "skipped",
    "FLOPs saved",
    "cross-entropy",
    "above full",
    "routed - this",
    "95 % interval",
    "as served",
)


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of a calibration record as numbers, a row an arm; the routed arm's further budgets follow it.

    Keys: ``arm``, ``skipped`` and ``saved`` (shares), ``loss`` and ``above_full`` (nats per token), ``difference``,
    ``low`` and ``high`` (routed less this arm at equal executed FLOPs, with its 95 % interval) and ``as_served`` (at
    unequal cost). What there is none of is None.
    """
    arms = record["arms"]
    dense, found = arms["dense"]["loss"], []
    nothing = dict.fromkeys(("difference", "low", "high", "as_served"))

    def one(name: str, arm: Mapping[str, Any]) -> dict[str, Any]:
        measured = {key: arm[key] for key in ("skipped", "saved", "loss")}
        return {"arm": name, **measured, "above_full": arm["loss"] - dense, **nothing}

    for name, arm in arms.items():
        row = one(arm["title"], arm)
        gap, unequal = arm["at_equal_cost"], arm["routed_minus_this"]
        if gap is not None:
            row |= {"difference": gap["mean"], "low": gap["low"], "high": gap["high"]}
        if unequal is not None and name != "dense":
            row["as_served"] = unequal["mean"]
        found.append(row)
        if name == "routed":
            budgets = record.get("budgets", {}).items()
            found += [one(f"  at budget {float(budget):.0%}", served) for budget, served in budgets]
    return found


def cells(row: Mapping[str, Any]) -> list[str]:
    """One of ``rows`` as it is shown under ``HEADINGS``."""

    def signed(value: float | None) -> str:
        return "" if value is None else f"{value:+.4f}"

    return [
        row["arm"],
        f"{row['skipped']:.1%}",
        f"{row['saved']:.1%}",
        f"{row['loss']:.4f}",
        signed(row["above_full"]),
        signed(row["difference"]),
        "" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}",
        signed(row["as_served"]),
    ]


def title(record: Mapping[str, Any]) -> str:
    """What the table is about."""
    unit = record["recipe"]["unit"]
    tokens = record["documents"] * record["recipe"]["length"]
    of = "" if unit == "block" else f" of {unit}"
    return (
        f"{record['model']}, budget {record['recipe']['budget']:.0%}{of}: held-out cross-entropy in nats per token "
        f"({tokens:,} tokens of {record['documents']} documents of {record['data']['heldout_source']})"
    )


def facts(record: Mapping[str, Any]) -> list[str]:
    """What static pruning takes out, and where the routed arm skips."""
    found, unit = [], record["recipe"]["unit"]
    for name, layers in record["static"].items():
        method = name.removeprefix("block_")
        of, what = (" of whole layers", "block") if method != name else ("", unit)
        taken = ", ".join(map(str, layers))
        found.append(f"static prune{of} by {method} takes out {PRUNED[what]} {taken}")
    rates: dict[str, dict[str, str]] = {}
    for name, site in record["sites"].items():
        layer, _, half = name.partition(".")
        if site["rate"] > 0:
            rates.setdefault(half or "layer", {})[layer] = f"{site['rate']:.0%}"
    told = [
        f"{next(iter(own.values()))} at every {what}"
        if len(set(own.values())) == 1
        else f"by {what}: {', '.join(f'{layer}: {rate}' for layer, rate in own.items())}"
        for what, own in rates.items()
    ]
    who = "sequences" if record["recipe"]["granularity"] == "sequence" else "tokens"
    return [*found, f"routed, share of {who} that skip, {'; '.join(told)}"]
