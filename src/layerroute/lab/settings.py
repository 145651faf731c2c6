"""The settings that a reader wants to know of each arm, side by side, from the resolved recipes."""

from collections.abc import Sequence
from typing import Any

from layerroute.lab.arms import Arm
from layerroute.lab.format import MISSING, count, learning_rate
from layerroute.lab.table import Cell, Column, Row, Table

# What the reader reads, and where the recipe keeps it.
_SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Layers", ("model", "layer_pattern")),
    ("Hidden size", ("model", "hidden_size")),
    ("Attention heads", ("model", "num_attention_heads")),
    ("MLP ratio", ("model", "mlp_ratio")),
    ("MLP width", ("model", "intermediate_size")),
    ("Router", ("model", "routing", "router")),
    ("Decisions", ("model", "router_mode")),
    ("Granularity", ("model", "granularity")),
    ("Routed unit", ("model", "routed_unit")),
    ("Context of the paths", ("model", "context")),
    ("Estimator", ("model", "routing", "estimator")),
    ("Control", ("model", "routing", "control")),
    ("Budget held by", ("model", "routing", "budget")),
    ("Rate asked for", ("model", "routing", "rate")),
    ("Sequence length", ("data", "sequence_length")),
    ("Batch size (sequences)", ("train", "batch_size")),
    ("Steps", ("train", "max_steps")),
    ("Learning rate (peak)", ("train", "learning_rate")),
    ("Warm-up (share of the run)", ("train", "warmup_share")),
    ("AdamW β₁", ("train", "adam_beta1")),
    ("AdamW β₂", ("train", "adam_beta2")),
    ("AdamW ε", ("train", "adam_epsilon")),
    ("Weight decay", ("train", "weight_decay")),
    ("Gradient clipping (norm)", ("train", "max_gradient_norm")),
    ("Precision", ("train", "precision")),
    ("Balance loss weight α", ("objective", "balance_weight")),
    ("Temperature τ", ("objective", "temperature")),
)
_ROUTER_ONLY = {
    "Router",
    "Decisions",
    "Granularity",
    "Routed unit",
    "Context of the paths",
    "Estimator",
    "Control",
    "Budget held by",
    "Rate asked for",
    "Balance loss weight α",
    "Temperature τ",
}
_LEARNED_ONLY = {
    "Router",
    "Decisions",
    "Estimator",
    "Budget held by",
    "Balance loss weight α",
    "Temperature τ",
}


def settings_table(arms: Sequence[Arm]) -> Table:
    """One row a setting, one column an arm; settings that no arm has are left out."""
    rows = []
    for name, keys in _SETTINGS:
        values = [_value(arm, name, keys) for arm in arms]
        if any(value != MISSING for value in values):
            rows.append(Row(cells=(Cell(name), *(Cell(value) for value in values))))
    return Table(
        name="Table of settings",
        title="Settings of each arm, from the resolved recipes",
        columns=(Column(label="Setting"), *(Column(label=arm.label) for arm in arms)),
        rows=tuple(rows),
    )


def _value(arm: Arm, name: str, keys: tuple[str, ...]) -> str:
    kind = arm.kind
    if (name in _ROUTER_ONLY and not kind.routed) or (name in _LEARNED_ONLY and kind.control):
        return MISSING
    value = arm.example.value("recipe", *keys)
    if (
        name == "Rate asked for"
        and not kind.control
        and arm.example.value("recipe", "model", "routing", "budget")
        in (
            None,
            "none",
        )
    ):
        return MISSING
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
    runs: list[tuple[str, int]] = []
    for layer in pattern:
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return ", ".join(layer if times == 1 else f"{times} × {layer}" for layer, times in runs)
