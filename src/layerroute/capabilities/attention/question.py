"""The question: does per-token attention routing end with a lower loss than layers assigned statically."""

from collections.abc import Mapping
from typing import Any

from layerroute.capabilities.attention import tables
from layerroute.capabilities.attention.kinds import (
    ALL_GDN,
    ALL_SOFTMAX,
    DYNAMIC,
    KINDS,
    PERIODIC,
    RANDOM,
    STATIC,
    STATIC_CONTROL,
    kind_of,
)
from layerroute.capabilities.attention.settings import settings_table
from layerroute.lab.arms import Arm
from layerroute.lab.compare import Comparison
from layerroute.lab.controls import EQUAL_COST, EQUAL_PARAMETERS, SAME_RATE, controls_table
from layerroute.lab.question import Control, Question, Shown
from layerroute.lab.table import Table


def _layers(arm: Arm) -> str:
    pattern = arm.layer_pattern
    linear = pattern.count("gdn")
    return f"{arm.label}: {linear} GDN to {len(pattern) - linear} softmax layers" if pattern else ""


CONTROLS = (
    Control(name="all-softmax", refutes="that linear layers cost quality at all", kinds=(ALL_SOFTMAX,)),
    Control(name="all-GDN", refutes="that softmax attention is needed at all", kinds=(ALL_GDN,)),
    Control(name="static", refutes="that routing is needed to mix the two", kinds=(STATIC,), tell=_layers),
    Control(
        name="static at equal parameters",
        refutes="that more parameters explain it",
        kinds=(STATIC, STATIC_CONTROL),
        match=EQUAL_PARAMETERS,
    ),
    Control(
        name="static at equal FLOPs",
        refutes="that more compute explains it",
        kinds=(STATIC, STATIC_CONTROL),
        match=EQUAL_COST,
    ),
    Control(name="dynamic", refutes="(the claim itself)", kinds=(DYNAMIC,), claim=True),
    Control(
        name="random at the same rate",
        refutes="that any sparse mixture does as well",
        kinds=(RANDOM,),
        match=SAME_RATE,
    ),
    Control(
        name="periodic at the same rate",
        refutes="that evenly spread softmax does as well",
        kinds=(PERIODIC,),
        match=SAME_RATE,
    ),
)


def _tables(comparison: Comparison) -> Mapping[str, Table | None]:
    arms, baseline = comparison.arms, comparison.baseline
    return {
        "main": tables.main_results(arms, baseline),
        "routing": tables.routing_statistics(arms),
        "efficiency": tables.efficiency(arms, baseline),
        "fairness": tables.fairness(arms, baseline, comparison.same_data),
        "parts": tables.by_part(arms),
        "settings": settings_table(arms),
        "controls": controls_table(comparison.controls, comparison.subject),
        "runs": tables.runs_table(arms),
    }


def _page() -> Any:
    from layerroute.capabilities.attention.page import PAGE

    return PAGE


QUESTION = Question(
    capability="attention_routing",
    title="Attention routing",
    text=(
        "Can a language model choose, token by token and layer by layer, between linear attention (Gated "
        "DeltaNet, O(n)) and softmax attention (O(n²)), and predict text better than one whose layers are "
        "assigned statically?"
    ),
    kinds=KINDS,
    kind_of=kind_of,
    controls=CONTROLS,
    baselines=(STATIC,),
    tables=_tables,
    facts=lambda comparison: {"bigram_loss": tables.bigram_losses(comparison.arms)},
    terminal=(
        Shown(table="main", below=lambda comparison: [tables.bigram_sentence(comparison.arms)]),
        Shown(table="differences", hide=frozenset({"Detectable", "Not equal besides"})),
        Shown(table="routing"),
        Shown(table="efficiency"),
        Shown(table="fairness", turned=True),
    ),
    page=_page,
)
