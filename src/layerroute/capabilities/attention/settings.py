"""The settings that a reader wants to know of each arm, side by side, from the resolved recipes."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from layerroute.lab.arms import Arm
from layerroute.lab.format import MISSING, count, learning_rate
from layerroute.lab.table import Table, words

# What the reader reads, where the recipe keeps it, and which arms have it.
_SETTINGS: tuple[tuple[str, str, Literal["all", "routed", "learned"]], ...] = (
    ("Layers", "model.layer_pattern", "all"),
    ("Hidden size", "model.hidden_size", "all"),
    ("Attention heads", "model.num_attention_heads", "all"),
    ("MLP ratio", "model.mlp_ratio", "all"),
    ("MLP width", "model.intermediate_size", "all"),
    ("Router", "model.routing.router", "learned"),
    ("Decisions", "model.router_mode", "learned"),
    ("Granularity", "model.granularity", "routed"),
    ("Routed unit", "model.routed_unit", "routed"),
    ("Context of the paths", "model.context", "routed"),
    ("Estimator", "model.routing.estimator", "learned"),
    ("Control", "model.routing.control", "routed"),
    ("Budget held by", "model.routing.budget", "learned"),
    ("Rate asked for", "model.routing.rate", "routed"),
    ("Sequence length", "data.sequence_length", "all"),
    ("Batch size (sequences)", "train.batch_size", "all"),
    ("Steps", "train.max_steps", "all"),
    ("Learning rate (peak)", "train.learning_rate", "all"),
    ("Warm-up (share of the run)", "train.warmup_share", "all"),
    ("AdamW β₁", "train.adam_beta1", "all"),
    ("AdamW β₂", "train.adam_beta2", "all"),
    ("AdamW ε", "train.adam_epsilon", "all"),
    ("Weight decay", "train.weight_decay", "all"),
    ("Gradient clipping (norm)", "train.max_gradient_norm", "all"),
    ("Precision", "train.precision", "all"),
    ("Balance loss weight α", "objective.balance_weight", "learned"),
    ("Temperature τ", "objective.temperature", "learned"),
)


def settings_table(arms: Sequence[Arm]) -> Table:
    """One row a setting, one column an arm; settings that no arm has are left out."""
    rows = [[name, *(_value(arm, name, keys, whose) for arm in arms)] for name, keys, whose in _SETTINGS]
    return Table.of(
        "Table of settings",
        "Settings of each arm, from the resolved recipes",
        [
            words("Setting", lambda row: row[0]),
            *(words(arm.label, itemgetter(place)) for place, arm in enumerate(arms, 1)),
        ],
        [row for row in rows if set(row[1:]) != {MISSING}],
    )


def _value(arm: Arm, name: str, keys: str, whose: str) -> str:
    if not {"all": True, "routed": arm.kind.routed, "learned": arm.kind.learned}[whose]:
        return MISSING
    budget = arm.example.value("recipe", "model", "routing", "budget")
    if name == "Rate asked for" and not arm.kind.control and budget in (None, "none"):
        return MISSING
    value = arm.example.value("recipe", *keys.split("."))
    return MISSING if value is None else _text(name, value)


def _text(name: str, value: Any) -> str:
    if name == "Layers" and isinstance(value, list | tuple):
        return pattern_text([str(layer) for layer in value])
    if name in ("Learning rate (peak)", "AdamW ε") and isinstance(value, int | float):
        return learning_rate(float(value))
    if isinstance(value, dict) and {"start", "end"} <= value.keys():
        return f"{value['start']:g} → {value['end']:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("_", " ")
    return count(value) if isinstance(value, int) and value >= 100_000 else f"{value:g}"


def pattern_text(pattern: Sequence[str]) -> str:
    """``3 × gdn, softmax`` for a layer pattern, repeats of one kind drawn together."""
    runs = [(layer, len(list(group))) for layer, group in groupby(pattern)]
    return ", ".join(layer if times == 1 else f"{times} × {layer}" for layer, times in runs)
