"""The outcome of a calibration as plain data: for records, tables and whoever reads them without torch."""

from typing import Any

from layerroute.skipping.calibration.calibrate import Calibration
from layerroute.skipping.calibration.heldout import Score, paired_bootstrap

CONTROLS = {
    "static_influence": "static prune, block influence",
    "static_greedy": "static prune, greedy by loss",
    "random": "random",
    "periodic": "periodic",
    "early_exit": "early exit",
}
TITLES = {"dense": "full depth", "routed": "routed per token", **CONTROLS}


def result_sections(calibration: Calibration, scores: dict[str, Score]) -> dict[str, Any]:
    """``arms`` (loss, share skipped, routed - arm), ``static``, ``sites``, ``rounds``, ``seconds``, ``documents``."""
    routed = scores["routed"]
    arms = {}
    for name, score in scores.items():
        difference = paired_bootstrap(routed.losses, score.losses) if name != "routed" else None
        arms[name] = {
            "title": TITLES.get(name, name),
            "loss": score.loss,
            "skipped": score.skipped,
            "skipped_by_layer": {str(layer): share for layer, share in score.skipped_by_layer.items()},
            "routed_minus_this": None
            if difference is None
            else {"mean": difference.mean, "low": difference.low, "high": difference.high},
        }
    sites = {
        str(layer): {"rate": site.rate, "r2": None if site.predictor is None else site.predictor.r2}
        for layer, site in calibration.policy.sites.items()
    }
    return {
        "arms": arms,
        "static": {name: list(layers) for name, layers in calibration.static.items()},
        "sites": sites,
        "rounds": [
            {"loss": one["loss"], "rates": {str(layer): rate for layer, rate in one["rates"].items()}}
            for one in calibration.rounds
        ],
        "chosen_round": calibration.chosen,
        "seconds": calibration.seconds,
        "documents": len(routed.losses),
    }


def verdict(arms: dict[str, Any]) -> str:
    """What the table comes to, in a sentence or two: wins, losses and what cannot be told apart."""
    parts = []
    for name in CONTROLS:
        if name not in arms:
            continue
        gap = arms[name]["routed_minus_this"]
        word = "beats" if gap["high"] < 0 else "loses to" if gap["low"] > 0 else "cannot be told from"
        parts.append(
            f"{word} {arms[name]['title']} ({gap['mean']:+.3f} nats, 95 % {gap['low']:+.3f} to {gap['high']:+.3f})"
        )
    return f"Per-token routing {'; '.join(parts)}."
