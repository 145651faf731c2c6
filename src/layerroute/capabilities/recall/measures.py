"""What records say of recall, and of the softmax that an arm uses for it."""

from layerroute.lab.arms import Arm
from layerroute.lab.controls import rate_of
from layerroute.lab.fairness import cache_bytes
from layerroute.lab.format import count, percent
from layerroute.lab.statistics import Estimate
from layerroute.lab.table import Cell, Field, figures, words
from layerroute.lab.tables import SEEDS, estimate_cell


def by_length(arm: Arm, key: str) -> dict[int, dict[int, float]]:
    """A number by seed and multiple of the training length; completed runs that have it."""
    found = {
        run.seed: {
            int(point["multiple"]): float(point[key])
            for point in run.value("recall", "by_length") or ()
            if point.get(key) is not None
        }
        for run in arm.completed
    }
    return {seed: values for seed, values in found.items() if values}


def recall_by_seed(arm: Arm, *, multiple: int = 1) -> dict[int, float]:
    """Share of answers recalled at ``multiple`` of the training length, by seed of the completed runs that have it."""
    found = by_length(arm, "accuracy").items()
    return {seed: values[multiple] for seed, values in found if multiple in values}


def rates_by_length(arm: Arm) -> dict[int, dict[int, float]]:
    """Rate of the arm's router by seed and multiple of the training length; completed runs that have it."""
    return by_length(arm, "mean_rate")


def lengths(arm: Arm) -> dict[int, int]:
    """Tokens by multiple of the training length."""
    found = by_length(arm, "length").values()
    return {multiple: int(tokens) for values in found for multiple, tokens in values.items()}


def softmax_rate(arm: Arm, routed: float | None) -> float | None:
    """Share of tokens with softmax attention, averaged over the layers after the first.

    A parallel router cannot route the first layer: with it in the mean, a model of two layers that sends every token to
    softmax would stand at one half. Attention over a window counts as softmax.
    """
    pattern = list(arm.layer_pattern)
    mixing = pattern[1:] or pattern
    if not mixing or (routed is None and "routed" in mixing):
        return None
    share = {"softmax": 1.0, "window": 1.0, "gdn": 0.0, "routed": routed or 0.0}
    return sum(share[kind] for kind in mixing) / len(mixing)


def with_softmax(arm: Arm) -> str:
    """An arm and how much softmax it uses, as the subject of a sentence."""
    share = percent(softmax_rate(arm, rate_of(arm)))
    return f"{arm.label}, with softmax for {share} of the tokens after the first layer,"


ARM_FIELDS: tuple[Field[Arm], ...] = (
    words("Model", lambda arm: arm.label),
    words("Kind", lambda arm: str(arm.kind)),
    SEEDS,
    figures("Softmax rate", lambda arm: softmax_rate(arm, rate_of(arm)), percent),
    figures("FLOPs/token, executed", lambda arm: arm.executed, count),
)
"""Columns of what an arm is and costs."""
BYTES: Field[Arm] = figures("Bytes/token, read", cache_bytes, count)


def share_cell(estimate: Estimate | None) -> Cell:
    """``90.1 ± 2.0%``."""
    return estimate_cell(estimate, digits=1, factor=100, unit="%")
